"""`ghostserve soak`: real kills on a live server under streaming clients, and every token against an undisturbed rerun.

settings -> strikes (drawn from the seed) -> campaign: client, striker, possessions -> report
            server (contract): embedded, vllm
"""

from ghostserve.soak.settings import SoakSettings

__all__ = ["SoakSettings"]
