"""Random seeds as functions of (seed, purpose, epoch, ...): a resume restores no generator state.

The hash is SplitMix64 (Steele, Lea and Flood 2014). Its constants are public, so that a science can
compute noise with them.
"""

GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's increment
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # its two multipliers
SHIFTS = (30, 27, 31)
ORDER, LAYERS = 1, 5  # streams of the harness: row order of an epoch, random layers
_MASK = 2**64 - 1


def _mix(bits: int) -> int:
    """Apply SplitMix64's finalizer."""
    for shift, factor in zip(SHIFTS, (*FACTORS, 1), strict=True):
        bits = ((bits ^ (bits >> shift)) * factor) & _MASK
    return bits


def derive_seed(*parts: int) -> int:
    """Return a 64-bit seed from non-negative integers, such as (seed, stream, epoch)."""
    key = 0
    for part in parts:
        key = _mix((key + (part + 1) * GOLDEN) & _MASK)
    return key
