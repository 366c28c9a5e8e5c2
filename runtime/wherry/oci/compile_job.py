"""What every step of one compilation looks at, as one value."""

from typing import NamedTuple

from wherry.model import Json
from wherry.oci.compile_builder import Builder
from wherry.oci.compile_namespaces import Namespaces
from wherry.oci.facts import HostFacts
from wherry.oci.how import LaunchHow

__all__ = ["Job"]


class Job(NamedTuple):
    """One plan in the making: the wish, the host, the circumstances, the namespaces, the operations so far."""

    config: Json
    bundle: str
    facts: HostFacts
    how: LaunchHow
    ns: Namespaces
    b: Builder

    @property
    def process(self) -> Json:
        """The process to run."""
        process: Json = self.config["process"]
        return process

    @property
    def linux(self) -> Json:
        """The config's linux section; empty where there is none."""
        linux: Json = self.config.get("linux") or {}
        return linux
