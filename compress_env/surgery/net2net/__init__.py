"""Net2Net (Chen, Goodfellow & Shlens, ICLR 2016): larger networks that compute what a smaller one does."""

from compress_env.surgery.net2net.deepen import Place, deepen, places
from compress_env.surgery.net2net.growing import growing
from compress_env.surgery.net2net.preserved import NotPreserved, difference
from compress_env.surgery.net2net.widen import widen

__all__ = ["NotPreserved", "Place", "deepen", "difference", "growing", "places", "widen"]
