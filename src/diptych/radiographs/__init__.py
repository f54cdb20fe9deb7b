"""From a file to a grey picture ``[h,v]`` of uint8."""
