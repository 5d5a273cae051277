from tests.gateway.fixtures import make_shop, shop

__all__ = ["make_shop", "shop"]
