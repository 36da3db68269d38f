"""Rules of layer-wise relevance propagation, for `smoothjax.lrp`.

A rule is a function `rule(layer, a, relevance)` of a `Layer`, of its input a, and of the relevance
of its output `z_j = sum_i c_ij + b_j`, where `c_ij = a_i w_ij` is a contribution. It returns the
relevance of a: each R_j, divided among the contributions to it. The formulas call p_j and n_j the
sums of the positive and of the negative contributions, each with the bias if that has its sign.

A rule of your own is any such function, with `jax.vjp(layer, a)` or `layer.contributions` to build
it from. A composite is a rule as well: `by_layer` makes one of a function that chooses.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax._checks import check_function, check_number, check_ordered, require
from smoothjax._shown import listed
from smoothjax._transform import name_of, noted
from smoothjax.attribution._layers import Layer as Layer
from smoothjax.attribution._layers import parts, ratio

Rule = Callable[[Layer, jax.Array, jax.Array], jax.Array]


@noted
def epsilon(epsilon: float = 1e-6) -> Rule:
    """Returns the epsilon rule: `R_i = sum_j c_ij R_j / (z_j + epsilon sign(z_j))`.

    The map is `x * gradient` for epsilon to 0 in a network of ReLUs, max pooling and sums.

    Args:
      epsilon: how much of each output, in its units, is left without relevance; more makes the map
        sparser.

    Returns:
      A rule. It conserves relevance but for the shares of epsilon and of biases.

    Raises:
      TypeError, ValueError: unless epsilon is a number above 0.

    Source: Bach et al. 2015, doi 10.1371/journal.pone.0130140.

    >>> rule = sj.attribution.lrp_rules.epsilon(1.0)
    >>> sj.lrp(lambda params, x: params @ x, rule)(jnp.array([2.0, -1.0]), jnp.array([1.0, 1.0]))
    Array([ 1. , -0.5], dtype=float32)
    """
    epsilon = check_number(epsilon, "epsilon", above=0)

    def rule(layer, a, relevance):
        z, pull_back = jax.vjp(layer, a)
        (c,) = pull_back(relevance / (z + jnp.where(z < 0, -epsilon, epsilon)))
        return a * c

    return rule


@noted
def gamma(gamma: float = 0.25) -> Rule:
    """Returns the gamma rule, which favours contributions of the sign of the output.

    `R_i = sum_j (c_ij + gamma max(c_ij, 0)) R_j / (z_j + gamma p_j)` where z_j >= 0, and the same
    with `min(c_ij, 0)` and n_j where z_j < 0.

    Args:
      gamma: how much they are favoured. The rule tends to the epsilon rule without epsilon for
        gamma to 0, and to the z-plus rule, where z_j >= 0, for gamma to infinity.

    Returns:
      A rule. It conserves relevance but for the shares of biases.

    Raises:
      TypeError, ValueError: unless gamma is a number above 0.

    Source: Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10, for inputs that are nowhere
    negative. As here, for inputs of any sign, it is zennit's.

    >>> rule = sj.attribution.lrp_rules.gamma(1.0)
    >>> sj.lrp(lambda params, x: params @ x, rule)(jnp.array([2.0, -1.0]), jnp.array([1.0, 1.0]))
    Array([ 1.3333334 , -0.33333334], dtype=float32)
    """
    gamma = check_number(gamma, "gamma", above=0)

    def rule(layer, a, relevance):
        p, n, divide = _by_sign(layer, a)
        is_negative = p + n < 0
        up, down = jnp.where(is_negative, 1, 1 + gamma), jnp.where(is_negative, 1 + gamma, 1)
        share = ratio(relevance, up * p + down * n)
        return divide(up * share, down * share)

    return rule


@noted
def alpha_beta(alpha: float = 2.0, beta: float = 1.0) -> Rule:
    """Returns the alpha-beta rule, which treats contributions of either sign apart.

    `R_i = sum_j (alpha max(c_ij, 0) / p_j - beta min(c_ij, 0) / n_j) R_j`.

    Args:
      alpha: the weight of the positive contributions.
      beta: that of the negative ones; `alpha - beta` is 1.

    Returns:
      A rule. It conserves relevance where an output has contributions of both signs, but for the
      shares of biases.

    Raises:
      TypeError, ValueError: unless they are numbers, beta at least 0, and `alpha - beta` is 1.

    Source: Bach et al. 2015, doi 10.1371/journal.pone.0130140.

    >>> rule = sj.attribution.lrp_rules.alpha_beta(2.0, 1.0)
    >>> sj.lrp(lambda params, x: params @ x, rule)(jnp.array([2.0, -1.0]), jnp.array([1.0, 1.0]))
    Array([ 2., -1.], dtype=float32)
    """
    alpha, beta = check_number(alpha, "alpha"), check_number(beta, "beta", least=0)
    require(abs(alpha - beta - 1) < 1e-6, f"alpha - beta must be 1; got {alpha} and {beta}.")

    def rule(layer, a, relevance):
        p, n, divide = _by_sign(layer, a)
        return divide(alpha * ratio(relevance, p), -beta * ratio(relevance, n))

    return rule


@noted
def zplus() -> Rule:
    """Returns the z-plus rule: `R_i = sum_j max(c_ij, 0) R_j / p_j`, alpha 1 and beta 0.

    Returns:
      A rule. It conserves relevance where an output has a positive contribution, but for the shares
      of biases; after a ReLU it never makes negative relevance of positive.

    Source: Montavon et al. 2017, doi 10.1016/j.patcog.2016.11.008.

    >>> rule = sj.attribution.lrp_rules.zplus()
    >>> sj.lrp(lambda params, x: params @ x, rule)(jnp.array([2.0, -1.0]), jnp.array([1.0, 1.0]))
    Array([1., 0.], dtype=float32)
    """
    return alpha_beta(1.0, 0.0)


@noted
def box(low: Any, high: Any) -> Rule:
    """Returns the box rule, for the first layer, whose input is bounded.

    `R_i = sum_j d_ij R_j / sum_k d_kj`, where `d_ij = a_i w_ij - low_i u_ij - high_i v_ij`, with
    the positive and the negative weights `w = u + v`.

    Args:
      low: the least value that x can have, a number or an array that broadcasts to x, in the units
        of x.
      high: the greatest value.

    Returns:
      A rule. It conserves relevance.

    Raises:
      ValueError: unless low is below high; when called, if the input of the layer is not x itself.

    Source: Montavon et al. 2017, doi 10.1016/j.patcog.2016.11.008.

    >>> rule = sj.attribution.lrp_rules.box(-1.0, 1.0)
    >>> sj.lrp(lambda params, x: params @ x, rule)(jnp.array([2.0, -1.0]), jnp.array([1.0, 0.0]))
    Array([1.6, 0.4], dtype=float32)
    """
    check_ordered(low, high, "bounds")

    def rule(layer, a, relevance):
        require(
            layer.reads_input,
            f"the bounds are those of x, which the layer at {layer.source} does not read: type "
            "by_layer(lambda layer: box(low, high) if layer.reads_input else ...).",
        )
        d, _, divide = layer.contributions(
            a - jnp.asarray(low, a.dtype), a - jnp.asarray(high, a.dtype)
        )
        return divide(ratio(relevance, d), jnp.zeros_like(d))

    return rule


@noted
def by_layer(choose: Callable[[Layer], Rule]) -> Rule:
    """Returns a composite: the rule that applies to each layer the rule that `choose` returns.

    Args:
      choose: a function of the `Layer`, whose fields say what and where it is, that returns a rule.

    Returns:
      A rule.

    Raises:
      TypeError: if `choose` is no function.

    Source: Montavon et al. 2019, doi 10.1007/978-3-030-28954-6_10; Kohlbrenner et al. 2020, arXiv
    1910.09840.

    >>> rules = sj.attribution.lrp_rules
    >>> epsilon_plus = rules.by_layer(
    ...     lambda layer: rules.epsilon() if layer.primitive == "dot_general" else rules.zplus()
    ... )
    >>> epsilon_gamma_box = rules.by_layer(
    ...     lambda layer: rules.box(-2.2, 2.7) if layer.reads_input
    ...     else rules.gamma() if layer.height > 2 else rules.epsilon(0.1)
    ... )
    """
    check_function(choose, "choose")

    def rule(layer, a, relevance):
        chosen = choose(layer)
        _check_rule(chosen, "what choose returns")
        return chosen(layer, a, relevance)

    return rule


def _check_rule(rule: Any, name: str) -> None:
    """Raises if a rule is no function, or one of those here without its parentheses."""
    check_function(rule, name)
    require(
        rule not in (epsilon, gamma, alpha_beta, zplus, box, by_layer),
        f"{name} must be a rule like epsilon(), with the parentheses; got {name_of(rule)}.",
        TypeError,
    )


def _by_sign(layer, a):
    """The sums of contributions of either sign, with the bias, p and n, and their division."""
    p, n, divide = layer.contributions(*parts(a))
    up, down = parts(layer(jnp.zeros_like(a)))
    return p + up, n + down, divide


__dir__ = listed(globals(), "Layer")
