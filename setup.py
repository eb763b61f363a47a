"""Builds the native CPU kernels; where that isn't possible the package installs without them."""

import importlib.util
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("bitttt_jax/native/src")
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-g0", "-Wall", "-Wextra"]
# Compiled for every instruction set: its floats in a vector, and flags. The library takes its
# choice when it is loaded.
KERNELS = ("ttt_linear.cc", "ttt_mlp.cc", "convolution.cc")
X86 = {
    "avx512": (16, ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]),
    "avx2": (8, ["-mavx2", "-mfma"]),
}
INSTRUCTION_SETS = {
    **(X86 if platform.machine().lower() in ("x86_64", "amd64") else {}),
    "baseline": (4, []),
}


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
        objects = build(["handlers.cc"], "handlers", [], [])
        for name, (lanes, flags) in INSTRUCTION_SETS.items():
            objects += build(KERNELS, name, [("SET", name), ("LANES", str(lanes))], flags)
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), target_lang="c++"
        )


setup(
    ext_modules=[
        Extension(
            "bitttt_jax.native.kernels",
            sources=[str(path) for path in sorted(SOURCES.glob("*.cc"))],
            depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
