"""Numbers as a person reads them."""


def signed(points: float) -> str:
    """``+0.55``, ``−0.30``; what rounds to nothing has no sign."""
    text = f"{abs(points):.2f}"
    if float(text) == 0:
        return text
    return f"{'−' if points < 0 else '+'}{text}"


def p_value(p: float) -> str:
    """``p = 0.21``, and ``p < 0.001`` below that."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def count(number: int, thing: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
