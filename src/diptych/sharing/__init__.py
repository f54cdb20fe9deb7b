"""A trained model goes to others: a folder or a repository of the hub, other libraries' formats, programs.

- ``folder``: weights, configuration, tokenizer and model card, written and read. ``card``: the model card.
- ``hub``: fetches such a folder, and sends one. ``tokenizer_files``: a tokenizer as transformers reads it.
- ``towers``: the image tower for timm, the text tower for transformers.
- ``programs``: towers and score as programs of torch or ONNX. ``panels``: what these programs compute.

Nothing here imports the model. So the model can save itself.
"""
