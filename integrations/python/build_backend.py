"""scikit-build-core, which also asks for torch where the environment that `pip install .` runs in has none.

The operators need torch's headers and one of its libraries to link with. A build of pip's is isolated from the
environment, and torch as a build requirement would be several gigabytes for each: so torch is looked for in the
environment itself.
"""

import os
import sys
import sysconfig

MARKER = os.path.join("include", "torch", "csrc", "stable", "library.h")


def torch_folder():
    """The package torch on the path, else of the environment around an isolated build; "" if there is none."""
    folders = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for folder in folders:
        candidate = os.path.join(folder, "torch")
        if os.path.exists(os.path.join(candidate, MARKER)):
            return candidate
    return ""


if __name__ == "__main__":
    print(torch_folder())
else:
    from scikit_build_core import build as _build
    from scikit_build_core.build import *  # noqa: F403

    def get_requires_for_build_wheel(config_settings=None):
        missing = [] if torch_folder() or os.environ.get("FASA_TORCH_DIR") else ["torch>=2.11"]
        return [*_build.get_requires_for_build_wheel(config_settings), *missing]
