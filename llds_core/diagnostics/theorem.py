"""The driver score of Theorem 4.2: how strongly one update of a group pulls its correct responses
down.

For a policy token let `h` be the state that predicts it and `e = onehot(token) - softmax(logits)`
its prediction error. The gradient of its log-probability with respect to the unembedding is `e hᵀ`,
so that two tokens influence each other by `alpha * <h, h'>` with `alpha = <e, e'>`. Summed over the
tokens of one correct response i,

    G_i = p- · (sum over tokens of wrong responses)  -  p+ · (the same over correct responses)

(arXiv 2512.04220, Theorem 4.2 / A.1). The group weights are those of the token-mean surrogate:
`p± = |advantage| / policy tokens of the group`. With them `-learning_rate · G_i` is the first-order
change of the response's summed log-probability under one step of plain gradient descent on the
unembedding alone. What moving states add the theorem leaves out (terms III and IV of the proof that
it extends, arXiv 2505.18830, section 7.2), and so do we. Rewards other than 0 and 1 give each
response a weight of its own.

Quadratic in the tokens of a group and linear in the vocabulary: meant for groups of a few
thousand tokens.
"""

import torch

from llds_core.losses.aggregate import upcast


def driver_score(
    states_ND: torch.Tensor,
    logits_NV: torch.Tensor,
    tokens_N: torch.Tensor,
    rows_N: torch.Tensor,
    advantages_B: torch.Tensor,
    correct_B: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Driver score of one group of responses to one question, and the factors the theorem names.

    Args:
        states_ND: (N, D) predicting states of all policy tokens of the group.
        logits_NV: (N, V) what they predict.
        tokens_N: (N,) the tokens.
        rows_N: (N,) which response each token belongs to, 0..B-1.
        advantages_B: (B,) advantages of the responses, positive for correct ones.
        correct_B: (B,) bool, which responses are correct.

    Returns:
        The share of every policy token in the driver of its own response, (N,) in float64: summed
        over a response, its G_i. And, NaN where there is no correct or, for the last two, no wrong
        response:

        - `driver`: mean of G_i over correct responses, in nats per unit of learning rate; larger
          means that less likelihood is gained, or more is lost. It is `pull - gain`.
        - `pull`: its term of wrong responses, positive where they push correct ones down.
        - `gain`: its term of correct responses, `own + support`.
        - `own`: what a correct response's own tokens do for each other, itself included: the size
          of its gradient, which any update on it follows.
        - `support`: what the other correct responses do for it.
        - `error_product`: mean `alpha` over pairs of a correct and a wrong token, in [-2, 2];
          tokens to which the policy gives little probability make it large.
        - `state_cosine`: mean cosine of the states over the same pairs, in [-1, 1].
    """
    errors_NV = -upcast(logits_NV).softmax(-1)
    errors_NV[torch.arange(len(tokens_N), device=tokens_N.device), tokens_N] += 1
    alpha_NN = (errors_NV @ errors_NV.T).double()
    inner_NN = (states_ND @ states_ND.T).double()
    weights_N = advantages_B.double()[rows_N] / len(rows_N)
    correct_N = correct_B[rows_N]
    influence_NN = alpha_NN * inner_NN * weights_N
    same_NN = rows_N[:, None] == rows_N
    # 0 / 0 is NaN, as is the mean over no pair.
    pull, own, support = (
        (sign * influence_NN[correct_N[:, None] & others].sum() / correct_B.sum()).item()
        for sign, others in ((-1, ~correct_N), (1, same_NN), (1, correct_N & ~same_NN))
    )
    norms_N = inner_NN.diagonal().sqrt()
    cosine_NN = inner_NN / (norms_N[:, None] * norms_N)
    return -influence_NN.sum(1), {
        "driver": pull - own - support,
        "pull": pull,
        "gain": own + support,
        "own": own,
        "support": support,
        "error_product": alpha_NN[correct_N][:, ~correct_N].mean().item(),
        "state_cosine": cosine_NN[correct_N][:, ~correct_N].mean().item(),
    }
