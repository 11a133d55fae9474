"""A network as what it is."""

from trainer.models.base import Network
from trainer.models.gru4rec import Weights


def gru(network: Network) -> Weights:
    assert isinstance(network, Weights)
    return network
