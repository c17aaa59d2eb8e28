"""A method: a site, a policy, a predictor and guards, with a name and a paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from diffcache.options import check_switch, frozen, meant
from diffcache.policies import DraftError, ErrorBudget, Policy
from diffcache.predictors import Newton, Predictor
from diffcache.runtime.disguise import base_of
from diffcache.runtime.guards import Guards
from diffcache.sites import Output, Site

Kind = Literal["static", "by timestep", "by layer", "predictive", "hybrid"]
"""The classes of the survey arXiv 2510.19755; "by timestep" and "by layer" are its dynamic ones."""

_PARTS = {"site": Site, "policy": Policy, "predictor": Predictor, "guards": Guards}


@dataclass(frozen=True)
class Published:
    """Constants that a paper measured, and on what.

    Attributes:
        denoiser: class name of the denoiser.
        config: entries of its config that tell its sizes apart.
        scheduler: class name of the scheduler.
        timetable: entries of its config that tell its timesteps apart.
        options: what was measured, as options of the method.
    """

    denoiser: str
    config: Mapping[str, Any]
    scheduler: str
    timetable: Mapping[str, Any]
    options: Mapping[str, Any]

    def fits(self, denoiser: Any, scheduler: Any) -> bool:
        """Whether they were measured on such a denoiser under such a scheduler."""
        return _agrees(denoiser, self.denoiser, self.config) and _agrees(
            scheduler, self.scheduler, self.timetable
        )


@dataclass(frozen=True)
class Method:
    """A frozen composition of where, when and what.

    Args:
        site: where work is avoided.
        policy: when.
        predictor: what stands in for it.
        guards: what may never be skipped.
        lagged: let policies read evidence that is a step older, so that no denoiser call waits for
            the device. Costs some fidelity or some skips; drafts are verified inside the call, so
            that it is refused for policies that accept them.
        name: how reports call it.
        kind: its class in the survey arXiv 2510.19755, None for one of your own.
        summary: one line on what it does.
        paper: BibTeX of what to cite.
        published: constants for denoisers that the paper measured, of what the policy measures.

    Raises:
        TypeError: a part is not of its kind.
        ValueError: `kind` is unknown, or the site cannot provide the evidence that the policy
            reads, has not the groups of modules that it decides on, or keeps nothing that the
            predictor fits.
    """

    site: Site = field(default_factory=Output)
    policy: Policy = field(default_factory=ErrorBudget)
    predictor: Predictor = field(default_factory=Newton)
    guards: Guards = field(default_factory=Guards)
    lagged: bool = False
    name: str = "custom"
    kind: Kind | None = None
    summary: str = ""
    paper: str = ""
    published: tuple[Published, ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            part = getattr(self, name)
            if not isinstance(part, kind):
                raise TypeError(
                    f"Method({name}={part!r}) is not a {kind.__name__}; pass an instance, "
                    f"for example Method({name}={getattr(Method(), name)!r})"
                )
        if self.kind not in (None, *get_args(Kind)):
            raise ValueError(
                f"kind={self.kind!r} is no class of methods; "
                f"use one of {', '.join(map(repr, get_args(Kind)))}"
            )
        needed = self.policy.evidence
        if needed not in self.site.provides:
            provided = ", ".join(sorted(e.__name__ for e in self.site.provides))
            raise ValueError(
                f"{type(self.policy).__name__} reads {needed.__name__}, which "
                f"{type(self.site).__name__} cannot provide; it provides {provided}. "
                f"{_advice(self.site, needed)}"
            )
        check_switch("lagged", self.lagged)
        if self.lagged and needed is DraftError:
            raise ValueError(
                f"lagged=True, but {type(self.policy).__name__} accepts or rejects a draft inside "
                "the call that it stands for; leave lagged out, or use a method whose policy "
                "decides before, as diffcache.wrap(pipe, 'adaptive', lagged=True)"
            )
        if self.predictor.differences and not self.site.keeps_differences:
            raise ValueError(
                f"{type(self.predictor).__name__} forecasts differences of guidance branches, "
                f"which {type(self.site).__name__} does not keep. Use site=Guidance(), or "
                "predictor=Newton()"
            )
        if self.policy.by_group and not self.site.groups:
            raise ValueError(
                f"{type(self.policy).__name__} decides on groups of modules, of which "
                f"{type(self.site).__name__} has none. Use site=Modules(), or a policy without "
                "groups"
            )
        if unknown := [g for g in self.policy.groups if g not in self.site.groups]:
            raise ValueError(
                f"{type(self.policy).__name__} decides on {unknown}, which {self.site!r} does not "
                f"know; it knows {list(self.site.groups)}. Use site=Modules(), or a policy without "
                "groups"
            )

    @property
    def damps(self) -> bool:
        """Whether forecasts go less far where the last one went the wrong way."""
        return self.predictor.damps and self.site.keeps_predictions

    def on_output(self) -> Method | None:
        """The method on whole outputs, or `ErrorBudget` there; None where it is there already.

        What is kept of a denoiser's whole output is the least that any site keeps.
        """
        if isinstance(self.site, Output):
            return None
        try:
            return replace(self, site=Output())
        except ValueError:
            return Method(guards=self.guards, lagged=self.lagged, name=self.name)

    def options(self) -> dict[str, Any]:
        """Every option that `configured` takes, with its value."""
        return {"lagged": self.lagged} | {
            option.name: getattr(getattr(self, part), option.name)
            for part in _PARTS
            for option in _options(getattr(self, part))
        }

    def configured(self, **options: Any) -> Method:
        """The method with options of its parts, or whole parts, replaced.

        A part may be given as the name of the method it is taken from: `predictor="taylorseer"`.

        Raises:
            ValueError: no part has that option, or a value is refused by its part.
        """
        whole = {name: _part(name, options.pop(name)) for name in list(options) if name in _PARTS}
        if whole:
            lagged = options.pop("lagged", self.lagged)
            return replace(self, **whole, lagged=lagged).configured(**options)
        options = {name: frozen(value) for name, value in options.items()}
        parts: dict[str, Any] = {name: getattr(self, name) for name in _PARTS}
        unknown = [name for name in options if name not in self.options()]
        if unknown:
            known = {*self.options(), *_PARTS, "mask", "calibration", "scheduler"}
            raise ValueError(
                f"{self.name!r} has no option {', '.join(map(repr, unknown))}; "
                f"it takes {', '.join(sorted(self.options()))}"
                + meant(unknown, known.difference(unknown))
            )
        for name, part in parts.items():
            own = {
                option.name: options[option.name]
                for option in _options(part)
                if option.name in options
            }
            if isinstance(part, Policy):
                parts[name] = part.revised(**own)
            elif own:
                parts[name] = replace(part, **own)
        return replace(self, **parts, lagged=options.get("lagged", self.lagged))


def _options(part: Any) -> list[Field]:
    """A part's fields but for those that the runtime sets."""
    return [field for field in fields(part) if field.metadata.get("option", True)]


def _agrees(part: Any, kind: str, entries: Mapping[str, Any]) -> bool:
    """Whether `part` is of that kind and has these entries in its config."""
    config = getattr(part, "config", {})
    found = {name: config.get(name) for name in entries}
    return base_of(part).__name__ == kind and found == dict(entries)


def _part(name: str, value: Any) -> Any:
    # The registry is made of modules that import this one.
    from . import registry

    if not isinstance(value, str):
        return value
    if value not in registry():
        raise ValueError(
            f"{name}={value!r} names no method to take the {name} of; use one of "
            f"{', '.join(map(repr, registry()))}" + meant([value], registry())
        )
    return getattr(registry()[value], name)


def _advice(site: Site, evidence: type) -> str:
    """What to use in place of `site`, or of one of its options, that provides `evidence`."""
    for option in fields(site):
        if option.default is not MISSING:
            changed = replace(site, **{option.name: option.default})
            if evidence in changed.provides:
                return f"Use {option.name}={option.default!r}"
    fitting = [
        f"{site.__name__}()" for site in Site.__subclasses__() if evidence in site().provides
    ]
    # A draft is verified by a block at the end of the stack.
    return f"Use site={' or '.join(fitting) or 'BlockStack(tail=1)'}"
