"""What compiled GPU kernels are held to: they fit, do not spill, use the hardware, and are no worse than before."""

from __future__ import annotations

from typing import Any

from kernels.runtime.machine_code import Compiled

#: Kernels whose work is matrix products, by backend: in half precision these must use tensor cores in their loop.
MATRIX_KERNELS: dict[str, set[str]] = {
    "triton": {
        *("attention_forward", "query_gradient", "key_gradients", "bias_gradient"),
        *("convolve", "weight_gradient_of_parts"),
        "statistics_of_products",
        *("held_forward", "held_backward", "forward_sequence", "backward_sequence", "forward_step", "backward_step"),
    },
    "cupy": {
        *("convolve", "weight_gradient_of_parts", "recurrence_forward", "recurrence_backward"),
        *("attention_forward", "query_gradient", "key_gradients", "bias_gradient", "shaw_products", "shaw_gradient"),
    },
}

ITEMSIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}

#: Triton's kernels that load what other threads of the same program have stored.
HANDING_ON = {"forward_sequence", "backward_sequence"}

#: By backend: kernels whose threads have one number each of most arrays, neighbours in a warp, which are whole sectors
#: (the tests on the CPU count them); what is wide there are the recurrent weights.
OF_SINGLES: dict[str, set[str]] = {
    "triton": set(),
    "cupy": {"recurrence_forward", "recurrence_backward", "pack_weights"},
}

#: Kernels of CUDA C++ that turn a matrix through shared memory, number by number: a warp has whole sectors on both
#: sides (the tests on the CPU count them), a thread's numbers never lie side by side on both.
OF_TURNED = {"pack_weight", "add_turned_parts"}

#: By backend and kernel, where need be of one family ("family/kernel"): accesses of a number a row beside its tiles,
#: which no vector can hold; of CUDA C++ also those of what lies behind the last whole vector. Triton's are counted
#: for each row that a thread has a part of, twice where a program has several rows.
OF_ROWS: dict[str, dict[str, int]] = {
    "triton": {
        # A row's class with its weight and logit; its loss, maximum and log-sum.
        **{"losses_of_rows": 6, "gradient_of_rows": 6},
        # A program's sum and count; all of a loss is single numbers.
        **{"sum_losses": 2, "finish_loss": 6},
        # To where tensor cores leave logits, two neighbours a thread: a class's bias and weight; numbers of a row.
        **{"statistics_of_products": 20, "losses_of_parts": 36},
        # A row's mean and deviation.
        **{"normalise_rows": 2, "gradients_of_parts": 2, "gradient_of_long_rows": 2, "sums_of_columns": 2},
        # A result a thread.
        **{"runtime/sum_parts": 1, "sums_of_pixels": 1},
        # A row's length, slope and seed, in each copy of up to three loops; a query's log-sum-exp and delta and two
        # neighbours of bias, where scores are left. In backward the loop for whole tiles has these once more, that of
        # an edge before and behind; of queries' own gradients a thread of 64 by 64 in eight warps has eight rows.
        **{"attention_forward": 9, "query_gradient": 20, "key_gradients": 17, "bias_gradient": 2},
        # A row's log-sum-exp in each of the copies of two loops over splits.
        **{"join_splits": 17, "row_products": 3},
        # Which row of the table a place names, its factor, where a row's places begin and end; the seed.
        **{"gather_rows": 2, "factors_of_rows": 2, "add_rows": 3, "drop_elements": 1},
        # A channel's bias, to where tensor cores leave sums; images of three channels, of which no pixel is a vector.
        "convolve": 16,
        # Places and lengths of rows, to wherever tensor cores take rows from or leave them; of the GRU a bias.
        **{"held_forward": 5, "held_backward": 4, "forward_sequence": 3, "backward_sequence": 5},
        **{"forward_step": 5, "backward_step": 6},
    },
    "cupy": {
        **{"attention_forward": 6, "query_gradient": 10, "key_gradients": 11, "row_products": 2, "join_splits": 20},
        **{"shaw_products": 5, "shaw_gradient": 39, "take_rows": 3, "attention/sum_parts": 30},
        # A number of a trained table for each thread.
        **{"sum_queries": 16, "sum_rows": 33},
        **{"losses_of_rows": 7, "losses_of_columns": 18, "loss_gradient_rows": 6, "loss_gradient_columns": 13},
        **{"sum_losses": 8, "finish_loss": 4},
        # A row's mean and deviation; where columns are summed, of the rows of up to five copies of a loop.
        **{"normalise_rows": 2, "gradients_of_parts": 2, "gradient_of_rows": 2, "sums_of_columns": 10},
        **{"drop_elements": 17, "factors_of_rows": 2, "gather_rows": 2, "bounds_of_rows": 3, "add_rows": 7},
        # A bias that is one number.
        **{"mask_padding": 1, "add_bias_and_activate": 1},
        # Elements beside their indices, which are the wide ones; a weight's gradient of which no vector is whole; a
        # channel's bias; the result of a product with few channels.
        **{"max_of_windows": 16, "gradient_of_maxima": 16, "add_parts": 5, "convolve": 8},
        **{"finish_parts": 1},
    },
}

#: Triton's kernels whose tiles give the 64 threads of AMD's waves less than a vector each, or whose results its matrix
#: cores leave four rows to a thread.
OF_WAVES = {
    *("attention_forward", "key_gradients", "row_products", "sums_of_pixels", "convolve", "weight_gradient_of_parts"),
    *("held_forward", "held_backward", "forward_step", "backward_step", "forward_sequence"),
}

#: By backend: kernels that gather windows of images.
OF_WINDOWS: dict[str, set[str]] = {
    "triton": {
        *("max_of_windows", "mean_of_windows", "gradient_of_maxima", "gradient_of_means", "sums_of_pixels"),
        *("convolve", "weight_gradient_of_parts", "convolve_depthwise", "spread_depthwise"),
    },
    "cupy": {
        *("max_of_windows", "mean_of_windows", "power_mean_of_windows"),
        *("gradient_of_maxima", "gradient_of_means", "gradient_of_power_means", "sums_of_pixels"),
        *("convolve", "weight_gradient_of_parts", "convolve_depthwise", "spread_depthwise"),
        *("largest_of_windows", "spread_to_winners"),
    },
}


#: By target, Triton's kernels of half precision of which a tile that spills a little was measured to be faster than all
#: tiles that do not, and how many instructions may: on an H100 the gradients of keys with 128 columns took 1697 us with
#: 64 by 64 and four warps (2061 with 64 by 128 and eight, 3876 with 64 by 64 and eight), with 512 columns 505 us
#: (1046), with a mask, window and cap 498 (686); an LSTM of 256 units 13.5 us a step with all units at a time (15.5
#: with half of them). Their counts there: 171 of key_gradients and none of query_gradient. The same tiles of calls that
#: were not measured spill more, as a loop for what is seen whole and one for either edge do: up to these. Of keys'
#: gradients in float32, as three products of tf32, the least tile of 128 columns spills 3.
MEASURED_SPILLS: dict[tuple[str, str], int] = {
    ("sm_90", "attention_forward"): 4,
    ("sm_90", "query_gradient"): 33,
    ("sm_90", "key_gradients"): 419,
    ("sm_90", "forward_sequence"): 44,
}


def soundness(kernel: Compiled) -> list[str]:
    """What is wrong with a compiled kernel at any size of its arrays: it spills, or does not fit."""
    broken = []
    most = MEASURED_SPILLS.get((kernel.target.name, kernel.name), 0) if kernel.backend == "triton" else 0
    # A second launch is for blocks whose sums are no numbers: as a rule there are none, and it returns at once.
    excused = 0 < most >= kernel.spills or kernel.options.get("SELECTS")
    if kernel.spills and not excused:
        broken.append(f"{kernel.spills} instructions spill registers")
    if kernel.stack and not excused:
        broken.append(f"a stack of {kernel.stack} bytes")
    if kernel.shared > kernel.target.block_shared:
        broken.append(f"{kernel.shared} bytes of shared memory, there are {kernel.target.block_shared}")
    if not kernel.target.amd:
        blocks, _, limiter = kernel.occupancy
        if blocks < 1:
            broken.append(f"no block fits on a multiprocessor: {limiter}")
    return broken


def gates(kernel: Compiled, dtype: str = "float32", vectors: bool = True) -> list[str]:
    """Every rule that a compiled kernel breaks, in words: it spills, does not fit, or does without the hardware.

    Args:
        kernel: the kernel, of arrays whose sizes and strides are multiples of wide vectors.
        dtype: of its arrays; tensor cores are asked for in half precision (float32 has them only as tf32).
        vectors: whether each thread has a wide vector of each tile, so that its accesses should be such.
    """
    broken = soundness(kernel)
    known = OF_ROWS[kernel.backend]
    of_rows = known.get(f"{kernel.family}/{kernel.name}", known.get(kernel.name, 0))
    of_rows *= _rows_of_thread(kernel, dtype)
    narrow = max(kernel.narrow - of_rows, 0)
    # A bool mask is read where tensor cores leave the scores, two neighbours a thread; terms by distance are gathered.
    # In CUDA C++ they are read in vectors of four scores, which are less than 128 bits but of a bias in float32.
    added = kernel.options.get("TERM") in (1, 3) or kernel.options.get("EXTRAS")
    scattered = kernel.options.get("HAS_MASK") or added or _follows_windows(kernel)
    scattered = scattered or kernel.options.get("SELECTS")  # a second launch
    # A bias of which only the keys that a query sees are read is so too, as the gradient of that bias shows.
    within = max(kernel.options.get("LEFT", -1), kernel.options.get("RIGHT", -1)) >= 0
    scattered = scattered or (kernel.name == "bias_gradient" and kernel.backend == "triton" and within)
    scattered = scattered or (kernel.name in OF_SINGLES[kernel.backend] and kernel.wide > 0)
    scattered = scattered or (kernel.target.amd and kernel.name in OF_WAVES)
    scattered = scattered or (kernel.backend == "cupy" and kernel.name in OF_TURNED)
    if vectors and not scattered and narrow > 0.1 * (kernel.wide + narrow):
        broken.append(f"{narrow} of {kernel.wide + narrow} global accesses are narrower than 128 bits")
    if kernel.backend == "triton" and kernel.name in HANDING_ON and kernel.count(r"LDG\S*CONSTANT"):
        broken.append("loads of what the program has stored go through the read-only path")
    if _multiplies(kernel) and dtype in ("float16", "bfloat16"):
        if not kernel.count(kernel.matrix_instructions, in_loop=bool(kernel.loop)):
            broken.append(f"no {kernel.matrix_instructions} in the loop")
        stages = int(kernel.options.get("num_stages", 1)) > 1 and bool(kernel.loop)
        if stages and not kernel.target.amd and not kernel.asynchronous:
            broken.append("no asynchronous copies, though there are stages")
    return broken


def _rows_of_thread(kernel: Compiled, dtype: str) -> int:
    """How many rows of its tile a thread has numbers of; where there are several, at least those of two layouts."""
    rows, block = int(kernel.options.get("ROWS", 1)), int(kernel.options.get("BLOCK", 0))
    several = min(rows, 2)
    if kernel.backend != "triton" or not block:
        return several
    threads = kernel.warps * kernel.target.warp
    along = max(min(block // (16 // ITEMSIZES[dtype]), threads), 1)
    return max(-(-rows // (threads // along)), several)


def _multiplies(kernel: Compiled) -> bool:
    """Whether its work is matrix products; of a recurrent step's parts backward, some are gates alone."""
    alone = kernel.options.get("PART") == "arrive" or (
        kernel.options.get("PART") == "gates" and not kernel.options.get("PROJECTS")
    )
    return kernel.name in MATRIX_KERNELS[kernel.backend] and not alone


def _follows_windows(kernel: Compiled) -> bool:
    """Whether neighbouring threads read where windows lie in (N, C, H, W), which begin anywhere: no vector holds that.

    In channels-last images they read neighbouring channels, and are held to the rule.
    """
    if kernel.backend == "cupy":
        return kernel.name in OF_WINDOWS["cupy"] and kernel.options["VECTOR"] == 1
    last = kernel.options.get("VECTORS", kernel.options.get("LAST", True))
    return kernel.name in OF_WINDOWS[kernel.backend] and not last


def worse(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """What of a report's line is worse than it was, in words. Slack is for a compiler's update."""
    complaints = []
    limits = (("registers", 8, 0.0), ("instructions", 8, 0.1), ("shared", 0, 0.0), ("narrow", 0, 0.0))
    for name, slack, share in limits:
        if new[name] > old[name] * (1 + share) + slack:
            complaints.append(f"{name} {new[name]}, were {old[name]}")
    if new["occupancy"] < old["occupancy"]:
        complaints.append(f"occupancy {new['occupancy']}, was {old['occupancy']} (limited by {new['limiter']})")
    for name in ("matrix", "asynchronous"):
        if new[name] == 0 < old[name]:
            complaints.append(f"{name} 0, were {old[name]}")
    return complaints
