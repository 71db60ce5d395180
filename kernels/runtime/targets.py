"""GPUs that kernels are compiled for: their limits, and how many blocks of a kernel a multiprocessor holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One kind of GPU.

    Attributes:
        name: as compilers spell it: "sm_90", "gfx942".
        block_shared: bytes of shared memory that a block can have.
        shared: bytes that a multiprocessor has for all its blocks.
        reserved: bytes that the system takes of these for every block.
        threads: threads that a multiprocessor holds.
        blocks: blocks that it holds.
        multiprocessors: how many the usual product has; tiles are cut for about so many.
        warp: threads of a warp.
        registers: 32-bit registers of a multiprocessor.
    """

    name: str
    block_shared: int
    shared: int
    reserved: int
    threads: int
    blocks: int
    multiprocessors: int
    warp: int = 32
    registers: int = 65536

    @property
    def amd(self) -> bool:
        """Whether it is AMD's, compiled through HIP."""
        return self.name.startswith("gfx")

    @property
    def architecture(self) -> str:
        """What Triton compiles for: from sm_90 on with what this kind alone has (wgmma, tcgen05)."""
        return self.name + ("a" if self.name.startswith("sm_") and int(self.name[3:]) >= 90 else "")

    @property
    def products_in_registers(self) -> bool:
        """Whether tensor cores take their factors from registers (mma), not from shared memory (wgmma, tcgen05)."""
        return self.name not in ("sm_90", "sm_100")

    def occupancy(self, registers: int, shared: int, threads: int) -> tuple[int, float, str]:
        """How many blocks of a kernel fit on a multiprocessor (NVIDIA's rules).

        Args:
            registers: of a thread.
            shared: bytes of a block.
            threads: of a block.

        Returns:
            (blocks, threads they have as a share of those that fit, what limits them: "registers", "shared memory",
            "threads" or "blocks"; "does not launch" with 0 blocks).
        """
        warps = -(-threads // self.warp)
        if threads > 1024 or shared > self.block_shared or registers > 255:
            return 0, 0.0, "does not launch"
        # Registers are given out to a warp in units of 256, in each of four quarters.
        of_warp = -(-max(registers, 1) * self.warp // 256) * 256
        limits = {
            "registers": self.registers // 4 // of_warp * 4 // warps,
            "shared memory": self.shared // (-(-(shared + self.reserved) // 128) * 128),
            "threads": self.threads // self.warp // warps,
            "blocks": self.blocks,
        }
        limiter = min(limits, key=limits.__getitem__)
        blocks = limits[limiter]
        return blocks, blocks * warps * self.warp / self.threads, limiter


#: By name. Sizes from the CUDA C++ Programming Guide's table of technical specifications; for gfx942 (MI300) from AMD's
#: CDNA 3 instruction set guide (64 KiB of local memory a workgroup; `occupancy` is NVIDIA's and not asked there).
TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("sm_80", 166912, 167936, 1024, 2048, 32, 108),
        Target("sm_86", 101376, 102400, 1024, 1536, 16, 84),
        Target("sm_89", 101376, 102400, 1024, 1536, 24, 128),
        Target("sm_90", 232448, 233472, 1024, 2048, 32, 132),
        Target("sm_100", 232448, 233472, 1024, 2048, 32, 148),
        Target("sm_120", 101376, 102400, 1024, 1536, 24, 170),
        Target("gfx942", 65536, 65536, 0, 2048, 32, 304, warp=64),
    )
}


def nearest(capability: tuple[int, int]) -> Target:
    """The target of an NVIDIA compute capability, (9, 0) say: the newest listed one that is not newer.

    Raises:
        ValueError: it is older than all of them.
    """
    number = capability[0] * 10 + capability[1]
    listed = sorted(int(name[3:]) for name in TARGETS if name.startswith("sm_"))
    known = [n for n in listed if n <= number]
    if not known:
        raise ValueError(f"compute capability must be at least {listed[0] / 10}, got {number / 10}")
    return TARGETS[f"sm_{known[-1]}"]
