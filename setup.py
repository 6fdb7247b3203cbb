"""What pyproject.toml can't say: the C shim is a cffi module, and one wheel serves every CPython
from 3.10 on because the shim keeps to the limited API."""

from setuptools import setup

setup(
    cffi_modules=["csrc/build_shim.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
