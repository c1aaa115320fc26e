"""Split the joint weights of queries, keys and values, whose channels differ between projects."""

from typing import Literal

from torch import Tensor


def split_joint(
    joint: Tensor, heads: int, *, part_axis: Literal[0, 1, 2]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (c, c) or biases (c,) of queries, keys and values, ordered by (head, channel).

    `joint` is (3c, c), (3c, c, 1, 1) or (3c,). Its rows are ordered by (head, channel of the head)
    and by what they are for, a query, key or value; `part_axis` is the place of the latter, such as
    1 for (head, part, channel).
    """
    joint = joint.flatten(1) if joint.ndim > 1 else joint
    width, rest = len(joint) // 3, joint.shape[1:]
    order = [heads, width // heads]
    order.insert(part_axis, 3)
    q, k, v = (
        part.reshape(width, *rest) for part in joint.reshape(*order, *rest).movedim(part_axis, 0)
    )
    return q, k, v
