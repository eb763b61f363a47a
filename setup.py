"""Builds the native CPU kernels; where that isn't possible the package installs without them."""

import importlib.util
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("bitttt_jax/native/src")
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-g0", "-Wall", "-Wextra"]
COMMON += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # in GCC 12's own headers
# What is compiled without regard to the CPU; it takes its choice among the rest at run time.
HANDLERS = (
    "kernels.cc",
    "threads.cc",
    "ttt_handlers.cc",
    "convolution_handlers.cc",
    "ahead.cc",
    "packed_handlers.cc",
    "table_handlers.cc",
    "attention_handlers.cc",
    "memory_handlers.cc",
    "norm_handlers.cc",
    "gate_handlers.cc",
    "argmax_handlers.cc",
    "product_handlers.cc",
)
FLOAT = (
    "ttt_linear.cc",
    "ttt_mlp.cc",
    "convolution.cc",
    "attention.cc",
    "norm.cc",
    "gate.cc",
    "argmax.cc",
    "product.cc",
)
BYTES = ("packed.cc", "table.cc", "grouped.cc")
BOTH = (*FLOAT, *BYTES)
AVX2 = ["-mavx2", "-mfma"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]
VNNI = [*AVX512, "-mavx512vnni"]
# Instruction sets: floats in a vector, flags, and what is compiled for them.
X86 = {
    "amx": (16, [*VNNI, "-mamx-tile", "-mamx-int8"], ("packed_amx.cc", "table_amx.cc")),
    "avx512vnni": (16, VNNI, BYTES),
    "avx512": (16, AVX512, FLOAT),
    "avxvnni": (8, [*AVX2, "-mavxvnni"], BYTES),
    "avx2": (8, AVX2, BOTH),
}
RECENT = ("amx", "avxvnni")  # left out where the compiler or the system doesn't know them
ARM = {"neon": (4, ["-march=armv8.2-a+dotprod"], BOTH)}
MACHINES = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}
INSTRUCTION_SETS = {**MACHINES.get(platform.machine().lower(), {}), "baseline": (4, [], BOTH)}


class BuildKernels(build_ext):
    """Compiles the kernels once for each instruction set, into one library without Python in it."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        spec = importlib.util.find_spec("jaxlib")
        headers = ["-isystem", str(Path(spec.origin).parent / "include")]
        build = lambda sources, folder, macros, flags: self.compiler.compile(
            [str(SOURCES / source) for source in sources],
            output_dir=str(Path(self.build_temp) / folder),
            macros=macros,
            extra_postargs=COMMON + headers + flags,
            depends=ext.depends,
        )
        objects, missing = [], []
        for name, (lanes, flags, sources) in INSTRUCTION_SETS.items():
            try:
                objects += build(sources, name, [("SET", name), ("LANES", str(lanes))], flags)
            except CompileError:
                if name not in RECENT:
                    raise
                missing.append((f"WITHOUT_{name.upper()}", None))
        objects += build(HANDLERS, "handlers", missing, [])
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), target_lang="c++"
        )


class PlatformWheel(bdist_wheel):
    """A wheel for all versions of Python: the library is the processor's and the system's alone."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "bitttt_jax.native.kernels",
            sources=[str(path) for path in sorted(SOURCES.glob("*.cc"))],
            depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
