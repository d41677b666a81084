"""What csrc/module.c offers; addresses are of fp32 memory, checked by no one but the caller."""

def moments(x: int, rows: int, width: int, mean: int, variance: int, threads: int, /) -> None: ...
def normalise(
    x: int, y: int, rows: int, width: int, mean: int, scale: int, bias: int, gelu: bool, threads: int, /
) -> None: ...
def gradient_sums(
    x: int,
    dy: int,
    g: int,
    rows: int,
    width: int,
    mean: int,
    scale: int,
    bias: int,
    gelu: bool,
    sum: int,
    sum_centred: int,
    threads: int,
    /,
) -> None: ...
def gradient(
    x: int,
    g: int,
    dx: int,
    rows: int,
    width: int,
    mean: int,
    scale: int,
    slope: int,
    offset: int,
    threads: int,
    /,
) -> None: ...
def gelu(x: int, y: int, count: int, threads: int, /) -> None: ...
def gelu_gradient(x: int, dy: int, dx: int, count: int, threads: int, /) -> None: ...
