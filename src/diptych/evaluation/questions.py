"""What a user asks of pictures, as a prompt set: names of findings, prompts of one's own, or a set by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diptych.errors import ConfigError, shown
from diptych.evaluation.prompts import Entry, PromptSet, load_prompts, shipped_prompts
from diptych.evaluation.protocols import PROTOCOLS, ProtocolName, check_prompts

__all__ = ["Prompts", "questions"]

Prompts = str | PromptSet | Mapping[str, Any]
"""Name or path of a prompt set, a prompt set, or a mapping as :func:`questions` takes it."""

_FORMS = (
    "give each finding a pair, as ('Pneumonia.', 'No pneumonia.'); or give each of several classes a text or a list"
)


def questions(
    findings: str | Sequence[str] | None, prompts: Prompts | None, protocol: ProtocolName, averages: bool
) -> PromptSet:
    """The prompt set that is asked.

    >>> asked = questions(["Pneumonia"], None, "diptych", False)
    >>> asked.entries[0].positive, asked.entries[0].negative
    (('Pneumonia',), ('no Pneumonia',))
    >>> questions(None, {"normal": "Clear lungs.", "ill": "Opacity."}, "diptych", False).kind
    'multiclass'

    Args:
        findings: names of findings. Each is asked as ``"NAME"`` against ``"no NAME"``, the template of CheXzero (Tiu et al.
            2022). With ``prompts``, these entries of it alone.
        prompts: name or path of a prompt set, or a mapping. It maps a finding to a pair (a tuple of the positive and the
            negative prompt, each a text or a list of texts). Or it maps each of several classes to a text or a list of texts.
        protocol: how scores of prompts become one.
        averages: whether text vectors are averaged.

    Raises:
        ConfigError: nothing is asked, or it is of another form, or the protocol cannot ask it.
    """
    names = [findings] if isinstance(findings, str) else findings
    if prompts is None and isinstance(findings, str) and findings in shipped_prompts():
        raise ConfigError(f"findings is '{findings}', the name of a prompt set; give prompts='{findings}'")
    if isinstance(names, Mapping):
        raise ConfigError("findings is a dict; give it as prompts={...}, or names of findings as a list")
    if names is not None and (not names or not all(isinstance(name, str) and name.strip() for name in names)):
        raise ConfigError(f"findings is {shown(list(names))}; give names, as ['Pneumonia', 'Edema']")
    if prompts is None:
        if names is None:
            raise ConfigError(
                "nothing is asked; give findings=['Pneumonia', ...], prompts={...}, or prompts= the name of a set: "
                + ", ".join(shipped_prompts())
            )
        source = 'the template "{}" against "no {}" of CheXzero (Tiu et al. 2022)'
        entries = tuple(Entry(name, (name,), (f"no {name}",)) for name in dict.fromkeys(names))
        asked = PromptSet("findings", "1", source, "binary", entries)
    else:
        asked = _set_of(prompts)
        if names is not None:
            known = {entry.name: entry for entry in asked.entries}
            if unknown := [name for name in names if name not in known]:
                raise ConfigError(
                    f"findings: '{unknown[0]}' is not in prompt set '{asked.name}', which asks for {', '.join(known)}"
                )
            asked = PromptSet(
                asked.name, asked.version, asked.source, asked.kind, tuple(known[name] for name in dict.fromkeys(names))
            )
    if protocol in PROTOCOLS and PROTOCOLS[protocol].transductive:
        raise ConfigError(
            f"protocol is '{protocol}', whose score of an image depends on the other images, so it gives no probability; take "
            "diptych, chexzero, biovil or convirt"
        )
    check_prompts(protocol, asked, averages, "zero_shot")
    return asked


def _set_of(prompts: Prompts) -> PromptSet:
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str):
        return load_prompts(prompts)
    if not isinstance(prompts, Mapping) or not prompts:
        raise ConfigError(f"prompts is {shown(prompts)}; give the name of a set, or a mapping: {_FORMS}")
    pairs = {name: value for name, value in prompts.items() if isinstance(value, tuple | Mapping)}
    if pairs and len(pairs) < len(prompts):
        raise ConfigError(
            f"prompts: some values are pairs, and '{next(n for n in prompts if n not in pairs)}' is none; {_FORMS}"
        )
    entries = tuple(
        Entry(str(name), *_pair(str(name), value)) if pairs else Entry(str(name), _texts(str(name), value))
        for name, value in prompts.items()
    )
    if not pairs and len(entries) < 2:
        raise ConfigError(f"prompts: there is one class, '{entries[0].name}'; {_FORMS}")
    return PromptSet("own", "1", "given in Python", "binary" if pairs else "multiclass", entries)


def _pair(name: str, value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(value, Mapping):
        if set(value) != {"positive", "negative"}:
            raise ConfigError(
                f"prompts: '{name}' has the keys {shown(sorted(map(str, value)))}; give positive and negative"
            )
        value = (value["positive"], value["negative"])
    if len(value) != 2:
        raise ConfigError(f"prompts: '{name}' has {len(value)} sides; {_FORMS}")
    return _texts(name, value[0]), _texts(name, value[1])


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ConfigError(f"prompts: '{name}' is {shown(value)}; {_FORMS}")
    return tuple(dict.fromkeys(texts))
