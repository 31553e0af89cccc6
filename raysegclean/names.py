"""Short names of what this package brings and a run folder mentions.

What is written into run folders, and what digests are made of, outlives the layout of the code.
There stands `adele`, not where ADELE's hook happens to live; code of users keeps its import path,
`package.module:NAME`. A name that was given stays for ever: old runs know it.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["BUILT_IN", "Kind", "load", "name_of"]

Kind = Literal["method", "hook", "network", "look"]

_METHODS = (
    *("adele", "combine", "confident", "cores", "coseg", "coteaching", "integrity", "multisa"),
    *("reweight", "spatial", "transition", "uncertainty"),
)

BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "method": {name: f"raysegclean.methods.{name}.method:{name.upper()}" for name in _METHODS},
    "hook": {
        "plain": "raysegclean.nets.hooks:Hook",
        "adele": "raysegclean.methods.adele.hook:AdeleHook",
        "cores": "raysegclean.methods.cores.hook:CoresHook",
        "coseg": "raysegclean.methods.coseg.hook:CosegHook",
        "coteaching": "raysegclean.methods.coteaching.hook:CoteachingHook",
        "presence": "raysegclean.methods.multisa.hook:PresenceHook",
        "relabel": "raysegclean.methods.uncertainty.hook:RelabelHook",
        "reweight": "raysegclean.methods.reweight.hook:ReweightHook",
        "transition": "raysegclean.methods.transition.hook:TransitionHook",
    },
    "network": {
        "unet": "raysegclean.nets.unet:build",
        "multisa": "raysegclean.methods.multisa.network:MultisaNet",
        "nnunet": "raysegclean.nets.nnunet:build",
    },
    "look": {
        "bias": "raysegclean.methods.spatial.bias:BiasReviser",
        "blend": "raysegclean.policy.blending:BlendReviser",
        "corrector": "raysegclean.policy.corrector:CorrectorReviser",
        "corrector-rows": "raysegclean.policy.corrector:RowsLook",
        "features": "raysegclean.methods.transition.reservoir:FeatureLook",
        "posterior": "raysegclean.methods.transition.matrix:PosteriorReviser",
        "shells": "raysegclean.methods.spatial.bias:ShellLook",
    },
}
"""Kind -> name -> import path. Looks are second looks and revisers (`evidence.second_pass`)."""


def load(kind: Kind, name: str) -> Any:
    """Return what a name of this package, or an import path `package.module:NAME`, stands for.

    Raises whatever the import raises, and AttributeError or ValueError for what is no such path.
    """
    module, _, attribute = BUILT_IN[kind].get(name, name).partition(":")
    return getattr(importlib.import_module(module), attribute)


def name_of(kind: Kind, found: type) -> str:
    """Return the name under which a class is known, its import path where it is a user's."""
    path = f"{found.__module__}:{found.__qualname__}"
    return next((name for name, place in BUILT_IN[kind].items() if place == path), path)
