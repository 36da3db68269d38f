"""The methods of `python -m smoothjax`, with the settings that it shows.

Methods share programs, for most of the time of a first run goes into compiling them: one program
draws noise on inputs, and one on weights and inputs. A noise level is an argument of both.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

import smoothjax as sj
from smoothjax._transform import keyed
from smoothjax._typing import Rule
from smoothjax.reductions import Estimate, mean_and_stderr, relative_error

if TYPE_CHECKING:
    from smoothjax.zoo import Network

INPUT_NOISE = 0.15  # of each photo's range


class Result(NamedTuple):
    """What a method returns for one photo; None for what it does not have."""

    attribution: jax.Array
    relative_error: jax.Array | None = None
    kept_share: jax.Array | None = None


class Method(NamedTuple):
    """A method with its settings filled in.

    Attributes:
      program: `program(key, params, x, label, predicted, *levels)` explains the class `label`,
        where the network predicts the class `predicted`. One that methods share is compiled once.
      settings: what the gallery and the JSON file say about it.
      levels: rules that make the noise levels of the program from x.
      result: makes the `Result` of what the program returns.
      bias: a word for what more draws do not mend.
    """

    program: Callable[..., Any]
    settings: dict[str, Any]
    levels: tuple[Rule, ...] = ()
    result: Callable[[Any], Result] = Result
    bias: str = ""


Row = Callable[["Programs"], Method]


class Programs:
    """The programs that methods share, for a network and a number of draws."""

    def __init__(self, net: "Network", num_samples: int):
        """Takes a network and the number of draws."""
        self.net, self.num_samples = net, num_samples
        self.saliency = sj.saliency(net.score)
        self.draws = {"num_samples": num_samples, "reduction": mean_and_stderr()}

    @functools.cached_property
    def over_inputs(self) -> Callable[..., Estimate]:
        """The means and errors of gradients and of their squares, with noise on x."""

        def with_square(*args):
            attribution = self.saliency(*args)
            return attribution, attribution**2

        def program(key, params, x, label, predicted, sigma):
            del predicted
            return sj.smoothgrad(with_square, sigma, **self.draws)(key, params, x, label)

        return program

    @functools.cached_property
    def over_weights(self) -> Callable[..., Estimate]:
        """The means and errors of gradients, with noise on weights and x, and of kept predictions.

        Averaged together, both have the same draws of the weights, and one set of noise for all
        weights, which is what takes longest to compile.
        """

        def program(key, params, x, label, predicted, sigma_weights, sigma):
            smoothed = sj.smoothgrad(self.saliency, sigma, num_samples=1)

            @sj.stochastic
            def with_kept(key, params):
                logits = self.net.apply(params, jnp.expand_dims(x, 0))[0]
                kept = jax.lax.argmax(logits, 0, jnp.int32) == predicted
                return smoothed(key, params, x, label), kept.astype(jnp.float32)

            return sj.noisegrad(with_kept, sigma_weights, **self.draws)(key, params)

        return program


def of_explainer(explain: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the program of an explainer `explain([key,] params, x, label)`."""
    explain = keyed(explain)

    def program(key, params, x, label, predicted):
        del predicted
        return explain(key, params, x, label)

    return program


def part(i: int) -> Callable[[Estimate], Result]:
    """Returns the function that takes one of the maps of which there is an estimate."""

    def result(estimate):
        of_map = Estimate(estimate.mean[i], estimate.stderr[i], estimate.num_samples)
        return Result(of_map.mean, relative_error(of_map))

    return result


GRADIENTS, SQUARES = part(0), part(1)  # of Programs.over_inputs


def filtered(estimate: Estimate) -> Result:
    """Returns the result of FORGrad of SmoothGrad's map."""
    return Result(sj.forgrad(lambda attribution: attribution, cutoff=15)(estimate.mean[0]))


def with_kept_share(estimate: Estimate) -> Result:
    """Returns the result of `Programs.over_weights`."""
    return part(0)(estimate)._replace(kept_share=estimate.mean[1])


def everywhere(rule: Rule) -> Rule:
    """Returns a rule with a level for each number: rules of equal shapes share a program."""
    return lambda x: jnp.broadcast_to(rule(x), x.shape)


INPUT_RULE = everywhere(sj.relative(INPUT_NOISE))


def input_noise(level: float) -> dict[str, str]:
    """Returns what is said about noise on x."""
    return {"input noise": f"{level} of range"}


def over_inputs(result: Callable[[Estimate], Result], bias: str = "", **settings: Any) -> Row:
    """Returns the row of what is made of the draws of SmoothGrad."""

    def method(programs):
        shown = {**input_noise(INPUT_NOISE), "draws": programs.num_samples, **settings}
        return Method(programs.over_inputs, shown, (INPUT_RULE,), result, bias)

    return method


def over_weights(share: float, level: float) -> Row:
    """Returns the row of a share of the calibrated noise on weights, and of noise on x."""
    rule = sj.relative(level)

    def method(programs):
        sigma = share * programs.net.sigma_weights

        def weight_rule(x):
            return jnp.asarray(sigma, x.dtype)

        settings = {"weight noise": sigma} | (input_noise(level) if level else {})
        settings["draws"] = programs.num_samples
        return Method(programs.over_weights, settings, (weight_rule, rule), with_kept_share)

    return method


def _adaptgrad(programs):
    rule = everywhere(sj.adaptive(programs.net.bounds, 0.95))
    settings = {"confidence": 0.95, "draws": programs.num_samples}
    return Method(programs.over_inputs, settings, (rule,), GRADIENTS)


def _vargrad(programs):
    num_samples = programs.num_samples
    explain = sj.vargrad(programs.saliency, INPUT_RULE, num_samples=num_samples)
    return Method(of_explainer(explain), {**input_noise(INPUT_NOISE), "draws": num_samples})


def _integrated_gradients(programs):
    num_steps = programs.num_samples
    explain = sj.integrated_gradients(programs.net.score, num_steps=num_steps)
    return Method(of_explainer(explain), {"baseline": "mean colour", "steps": num_steps})


def _rise(programs):
    num_masks = 20 * programs.num_samples  # a mask tells less than a gradient
    explain = sj.rise(programs.net.probability, num_samples=num_masks)

    def above_least(attribution):  # the mean probability is its offset
        return Result(attribution - jnp.min(attribution))

    settings = {"masks": num_masks, "score": "probability"}
    return Method(of_explainer(explain), settings, result=above_least)


class WithoutDraws(NamedTuple):
    """A row of the table: a method that --samples has no effect on."""

    explainer: Callable[["Network"], Callable[..., Any]]
    settings: dict[str, Any]
    bias: str = ""

    def __call__(self, programs):
        """Returns the method for a network."""
        return Method(of_explainer(self.explainer(programs.net)), self.settings, bias=self.bias)


METHODS: dict[str, Row] = {
    "saliency": WithoutDraws(lambda net: sj.saliency(net.score), {}),
    "smoothgrad": over_inputs(GRADIENTS),
    "smoothdiff": WithoutDraws(
        lambda net: sj.smoothdiff(net.score, INPUT_RULE),
        {**input_noise(INPUT_NOISE), "draws": 8},
        bias="biased, hardly noisy",
    ),
    "squaregrad": over_inputs(SQUARES),
    "noisegrad": over_weights(1, 0),
    "fusiongrad": over_weights(0.5, INPUT_NOISE / 2),
    "adaptgrad": _adaptgrad,
    "forgrad": over_inputs(filtered, bias="blurred", **{"cut-off": 15}),
    "integrated_gradients": _integrated_gradients,
    "input_times_gradient": WithoutDraws(lambda net: sj.input_times_gradient(net.score), {}),
    "vargrad": _vargrad,
    "gradcam": WithoutDraws(lambda net: sj.gradcam(net.features, net.head), {}),
    "gradcam_plus_plus": WithoutDraws(lambda net: sj.gradcam_plus_plus(net.features, net.head), {}),
    "occlusion": WithoutDraws(lambda net: sj.occlusion(net.score), {"patch": 32, "stride": 16}),
    "rise": _rise,
    "sobol": WithoutDraws(lambda net: sj.sobol(net.score), {"cells": "8 x 8", "designs": 32}),
    "hsic": WithoutDraws(lambda net: sj.hsic(net.score), {"cells": "8 x 8", "masks": 500}),
}
DEFAULT_METHODS = tuple(METHODS)[:8]
IGNORE_SAMPLES = [name for name, row in METHODS.items() if isinstance(row, WithoutDraws)]
