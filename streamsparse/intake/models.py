"""Build the original model from its name.

    torchvision:resnet18?num_classes=10     an architecture of torchvision, untrained
    timm:resnetv2_50                        an architecture of timm (optional extra), untrained
    package.module:function?width=2         a function that returns a torch.nn.Module

Nothing is downloaded: weights come from a file, see `weights`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from streamsparse.errors import ModelError
from streamsparse.intake.specs import Spec, bad_spec, named_callable, parse_spec, suggestion

# These draw their initial weights slowly, and warn, unless told not to; weights come from a file anyway.
_WITHOUT_INITIALISATION = ("googlenet", "inception_v3")
_FORBIDDEN_OPTIONS = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path")


def build_model(spec: str, *, trust_code: bool = False) -> nn.Module:
    """A freshly initialised model.

    Args:
        spec: as above; options are keyword arguments of the constructor.
        trust_code: `MODULE:FUNCTION` may come from the current directory. Its code runs.

    Raises:
        ModelError: unknown name, with the nearest known ones; wrong options; not a model.
    """
    parsed = parse_spec(spec, ModelError)
    forbidden = [option for option in _FORBIDDEN_OPTIONS if option in parsed.options]
    if forbidden and parsed.kind in ("torchvision", "timm"):
        expected = "an architecture without weights"
        raise bad_spec(ModelError, spec, expected, forbidden[0], "Give the weights as a file of their own.")
    if parsed.kind == "torchvision":
        return _built(spec, parsed, _torchvision(spec, parsed))
    if parsed.kind == "timm":
        return _built(spec, parsed, _timm(spec, parsed))
    if not parsed.kind:
        import torchvision

        remedy = suggestion(parsed.name, torchvision.models.list_models())
        expected = "torchvision:NAME, timm:NAME or MODULE:FUNCTION"
        raise bad_spec(ModelError, spec, expected, "no colon", remedy)
    return _built(spec, parsed, named_callable(spec, ModelError, trust_code=trust_code))


def _built(spec: str, parsed: Spec, constructor: Any) -> nn.Module:
    try:
        model = constructor(**parsed.options)
    except Exception as error:
        raise bad_spec(ModelError, spec, f"options that {parsed.name} takes", error) from error
    if not isinstance(model, nn.Module):
        raise bad_spec(ModelError, spec, "a function that returns a torch.nn.Module", type(model).__qualname__)
    return model


def _torchvision(spec: str, parsed: Spec) -> Any:
    import torchvision  # seconds, and not every model needs it

    known = torchvision.models.list_models()
    if parsed.name not in known:
        remedy = suggestion(parsed.name, known)
        raise bad_spec(ModelError, spec, "an architecture of torchvision", parsed.name, remedy)
    fixed: dict[str, Any] = {"weights": None}
    if parsed.name in _WITHOUT_INITIALISATION:
        fixed["init_weights"] = False
    if "weights_backbone" in torchvision.models.get_model_builder(parsed.name).__annotations__:
        fixed["weights_backbone"] = None
    return lambda **options: torchvision.models.get_model(parsed.name, **(fixed | options))


def _timm(spec: str, parsed: Spec) -> Any:
    try:
        import timm
    except ImportError as error:
        remedy = "Install the optional extra: pip install 'streamsparse[timm]'."
        raise bad_spec(ModelError, spec, "the package timm", error, remedy) from error
    if not timm.is_model(parsed.name) or ":" in parsed.name:
        remedy = suggestion(parsed.name, timm.list_models())
        raise bad_spec(ModelError, spec, "an architecture of timm", parsed.name, remedy)
    return lambda **options: timm.create_model(parsed.name, pretrained=False, **options)
