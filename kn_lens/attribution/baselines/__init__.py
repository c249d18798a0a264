"""Baselines of integrated gradients: simpler scores of the same neurons, and the truth that all of them approximate.

With ``w`` the clean activation at the read position and ``P`` the output (``P(v)``: with the activation replaced by
``v``):

    activation             w_i                          the paper's baseline; mean over the answer's rows
    gradient_x_activation  w_i * dP(w)/dw_i             ablation to first order
    ablation               P(w) - P(w with w_i = 0)     the truth
    log_prob_gain          log p(answer | r + b + w_i W_out[i]) - log p(answer | r + b)
                                                        Yu & Ananiadou (2024), in nats

In the last one, ``r`` is the residual stream that the MLP adds to, ``b`` its output bias, and ``p(. | x)`` reads
``x`` with the model's own final layers, the blocks above being left out: neuron i keeps its activation, and the others
of its layer are silent.
"""

from kn_lens.attribution.baselines.ablation import Ablation
from kn_lens.attribution.baselines.activation import Activation
from kn_lens.attribution.baselines.gradient_x_activation import GradientXActivation
from kn_lens.attribution.baselines.log_prob_gain import LogProbGain

__all__ = ["Ablation", "Activation", "GradientXActivation", "LogProbGain"]
