"""Multiplications of forward passes and of scoring all heads, counted from shapes."""


def multiplications(width: int, vocabulary: int, n_tokens: int, *, per_token: int, attended: int) -> tuple[int, ...]:
    """Of one layer on a prompt, of one layer on one last position beside it, and of the logits of one position.

    `per_token`: a layer's weights; `attended`: the width of all heads side by side. Attention counts pairs of
    positions, causal.
    """
    return (n_tokens * per_token + n_tokens**2 * attended, per_token + 2 * n_tokens * attended, width * vocabulary)


def operations(
    layers: int, heads: int, width: int, vocabulary: int, n_tokens: int, *, per_token: int = 0, attended: int = 0
) -> tuple[int, int]:
    """Multiplications of one plain forward pass with logits at its last token, and of scoring one prompt.

    Scoring includes the clean pass for the means. See `multiplications`; a layer is by default that of GPT-NeoX.
    """
    layer, row, unembed = multiplications(
        width, vocabulary, n_tokens, per_token=per_token or 12 * width**2, attended=attended or width)
    rows = heads * sum(range(1, layers + 1)) * row
    return layers * layer + unembed, 2 * layers * layer + rows + (layers * heads + 1) * unembed
