"""The check that no token is of two kinds or of none.

Kinds are carried from the rollout, never read off token ids: a padding or tag id inside a passage
means nothing.
"""

from collections.abc import Sequence


def validate_response_masks(
    completion_ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]] | None
) -> None:
    """Check that every completion token is marked as policy (1) or observation (0).

    TRL trains on every token whose mask is missing or too short, observations included, without a
    word.

    Raises:
        ValueError: when masks are missing, of another length, hold other values, or a row has no
            policy token.
    """
    if masks is None:
        raise ValueError("no env_mask from the rollout: return one list of 0 and 1 per trajectory")
    if len(masks) != len(completion_ids):
        rows = f"{len(masks)} rows for {len(completion_ids)} trajectories"
        raise ValueError(f"env_mask has {rows}: return one each")
    for row, (ids, mask) in enumerate(zip(completion_ids, masks, strict=True)):
        which = f"env_mask of trajectory {row}"
        if len(mask) != len(ids):
            raise ValueError(f"{which} has {len(mask)} values for {len(ids)} tokens: mark each")
        if not set(mask) <= {0, 1}:
            raise ValueError(f"{which} holds {sorted(set(mask) - {0, 1})}: use 0 and 1 only")
        if not any(mask):
            raise ValueError(
                f"trajectory {row} has no policy token: every trajectory begins with an action"
            )
