"""The devnet: a ledger of play money in one SQLite file that keeps EIP-3009's rules, so that real clients can pay it.

Networks and tokens carry their real identifiers, hence the same EIP-712 digests as on the real chain. Accounts are
ordinary wallets: there is no contract code, no gas and no reorganisation. The rules are those of Circle's FiatToken:
signature, window, authorization state, balance. Several processes may share a file.
"""

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from obol.adapters.chain_devnet_schema import DEVNET_SCHEMA
from obol.adapters.group_commit import GroupCommitWriter
from obol.core.clock import Clock
from obol.core.money import UINT256_MAX
from obol.core.networks import (
    BASE_SEPOLIA,
    DEFAULT_CATALOGUE,
    Asset,
    Catalogue,
    Network,
    TransferMethod,
    canonical_address,
)
from obol.errors import SettingsError
from obol.x402.authorization import Authorization
from obol.x402.eip712 import authorization_digest, domain_separator, recover
from obol.x402.facilitator import Accepted, Refused, Settlement, SettleOutcome, VerifyOutcome
from obol.x402.reasons import Reason

ZERO_ADDRESS = "0x" + "00" * 20
_CANCELLED = ""
_TRANSFERS = """
    SELECT transaction_id, network, asset, payer, payee, amount_atomic, nonce, at_s FROM transfer
    WHERE network = :network AND asset = :asset
      AND (:payer IS NULL OR payer = :payer) AND (:payee IS NULL OR payee = :payee)
      AND (:nonce IS NULL OR nonce = :nonce)
    ORDER BY block
"""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One movement of money. Addresses in lower case; a funding has payer `ZERO_ADDRESS` and no nonce."""

    transaction: str
    network: str
    asset: str
    payer: str
    payee: str
    amount_atomic: int
    nonce: str
    at_s: int


class DevnetChain:
    """Open with `open`, end with `close`. All methods raise `LedgerUnavailableError` when the file fails."""

    def __init__(
        self, writer: GroupCommitWriter, clock: Clock, networks: Sequence[Network], catalogue: Catalogue
    ) -> None:
        self.networks = tuple(networks)
        self._writer = writer
        self._clock = clock
        self.assets = tuple(
            asset
            for asset in catalogue.assets
            if asset.network in self.networks and asset.transfer_method is TransferMethod.EIP3009
        )
        """The tokens that exist here; as in the catalogue, the first of two that share an address counts."""
        self._domains = {
            asset: domain_separator(asset.eip712_name, asset.eip712_version, asset.network.chain_id, asset.address)
            for asset in self.assets
        }

    @classmethod
    async def open(
        cls,
        path: Path,
        clock: Clock,
        *,
        networks: Sequence[Network] = (BASE_SEPOLIA,),
        catalogue: Catalogue = DEFAULT_CATALOGUE,
    ) -> Self:
        """Open or create the file. Every EIP-3009 asset of the catalogue on `networks` exists, with no money in it.

        Raises `SettingsError` naming `--data-dir` for a file that cannot be used.
        """
        return cls(await GroupCommitWriter.open(path, DEVNET_SCHEMA), clock, networks, catalogue)

    def now_s(self) -> int:
        """The time of a block that is made now: whole seconds, as on a chain."""
        return int(self._clock.now_s())

    def asset(self, network: str, address: str) -> Asset | None:
        """The token at a contract address (any letter case) of a CAIP-2 network, or None."""
        wanted = canonical_address(address)
        return next((a for a in self.assets if a.network.caip2 == network and a.address.lower() == wanted), None)

    async def verify(self, authorization: Authorization, signature: bytes, asset: Asset) -> VerifyOutcome:
        """Whether `settle` would move the money now. Changes nothing."""

        def simulate(connection: sqlite3.Connection) -> Refused | None:
            return _refusal(connection, asset, authorization, self.now_s())

        if not self._is_signed(authorization, signature, asset):
            return Refused(Reason.SIGNATURE)
        return await self._writer.run(simulate) or Accepted(authorization.payer)

    async def settle(self, authorization: Authorization, signature: bytes, asset: Asset) -> Settlement:
        """`transferWithAuthorization`: SETTLED or FAILED, as one atomic step.

        The same authorization again is the same transaction, SETTLED, however late. Its nonce with other content, or
        cancelled, is FAILED.
        """

        def execute(connection: sqlite3.Connection) -> Settlement:
            earlier = _authorization(connection, asset, authorization.payer, authorization.nonce)
            if earlier is not None and earlier[0] == _content(authorization) and earlier[1] != _CANCELLED:
                return Settlement(SettleOutcome.SETTLED, earlier[1])
            now_s = self.now_s()
            refusal = _refusal(connection, asset, authorization, now_s)
            if refusal is not None:
                return Settlement(SettleOutcome.FAILED, "", refusal.reason, refusal.message)
            return Settlement(SettleOutcome.SETTLED, _transfer(connection, asset, authorization, now_s))

        if not self._is_signed(authorization, signature, asset):
            return Settlement(SettleOutcome.FAILED, "", Reason.SIGNATURE)
        return await self._writer.run(execute)

    async def fund(self, asset: Asset, account: str, amount_atomic: int) -> int:
        """Make play money; the account's new balance. Raises `SettingsError` for a bad account or amount."""
        holder = _holder(account, "ADDRESS")
        if holder == ZERO_ADDRESS:
            raise SettingsError("ADDRESS", "the zero address cannot hold money")
        transaction = "0x" + secrets.token_hex(32)

        def mint(connection: sqlite3.Connection) -> int:
            balance = _balance(connection, asset, holder) + amount_atomic
            if amount_atomic <= 0 or balance > UINT256_MAX:
                raise SettingsError("AMOUNT", "must be above 0, and the balance below 2^256")
            _set_balance(connection, asset, holder, balance)
            moved = Transfer(
                transaction, *_token(asset), ZERO_ADDRESS, holder, amount_atomic, nonce="", at_s=self.now_s()
            )
            _log(connection, moved)
            return balance

        return await self._writer.run(mint)

    async def balance(self, asset: Asset, account: str) -> int:
        """Atomic units held by an account. Raises `SettingsError` for what is no address."""
        holder = _holder(account, "ADDRESS")
        return await self._writer.run(lambda connection: _balance(connection, asset, holder))

    async def cancel(self, asset: Asset, payer: str, nonce: str) -> bool:
        """EIP-3009 `cancelAuthorization`, without the payer's signature; False when the nonce was used or cancelled."""
        key = (*_token(asset), _holder(payer, "payer"), nonce.lower())

        def void(connection: sqlite3.Connection) -> bool:
            sql = "INSERT OR IGNORE INTO authorization VALUES (?, ?, ?, ?, '', ?)"
            return connection.execute(sql, (*key, _CANCELLED)).rowcount == 1

        return await self._writer.run(void)

    async def transfers(
        self, asset: Asset, *, payer: str | None = None, payee: str | None = None, nonce: str | None = None
    ) -> list[Transfer]:
        """What moved, oldest first, of those that were asked for: the log to reconcile against."""
        network, address = _token(asset)
        wanted = {
            "network": network,
            "asset": address,
            "payer": payer and payer.lower(),
            "payee": payee and payee.lower(),
            "nonce": nonce and nonce.lower(),
        }
        rows = await self._writer.run(lambda connection: connection.execute(_TRANSFERS, wanted).fetchall())
        return [_as_transfer(*row) for row in rows]

    async def close(self) -> None:
        """Finish what was asked, then close the file. Idempotent."""
        await self._writer.close()

    def _is_signed(self, authorization: Authorization, signature: bytes, asset: Asset) -> bool:
        if len(signature) != 65:  # a contract wallet's: there are none here
            return False
        digest = authorization_digest(self._domains[asset], authorization)
        return recover(digest, signature) == authorization.payer


def _refusal(connection: sqlite3.Connection, asset: Asset, authorization: Authorization, now_s: int) -> Refused | None:
    """Why a signed authorization cannot be executed now, or None. FiatToken's comparisons are strict."""
    if now_s <= authorization.valid_after_s:
        return Refused(Reason.VALID_AFTER, "authorization is not yet valid")
    if now_s >= authorization.valid_before_s:
        return Refused(Reason.VALID_BEFORE, "authorization is expired")
    if _authorization(connection, asset, authorization.payer, authorization.nonce) is not None:
        return Refused(Reason.AUTHORIZATION_USED, "authorization is used or canceled")
    if authorization.to == ZERO_ADDRESS:
        return Refused(Reason.TRANSACTION_FAILED, "transfer to the zero address")
    if _balance(connection, asset, authorization.payer) < authorization.value_atomic:
        return Refused(Reason.INSUFFICIENT_BALANCE, "transfer amount exceeds balance")
    return None


def _transfer(connection: sqlite3.Connection, asset: Asset, authorization: Authorization, now_s: int) -> str:
    """Move the money and mark the nonce; the transaction's id."""
    token, payer, amount_atomic = _token(asset), authorization.payer, authorization.value_atomic
    transaction = _transaction_id(asset, authorization)
    connection.execute(
        "INSERT INTO authorization VALUES (?, ?, ?, ?, ?, ?)",
        (*token, payer, authorization.nonce, _content(authorization), transaction),
    )
    _set_balance(connection, asset, payer, _balance(connection, asset, payer) - amount_atomic)
    _set_balance(connection, asset, authorization.to, _balance(connection, asset, authorization.to) + amount_atomic)
    _log(
        connection,
        Transfer(transaction, *token, payer, authorization.to, amount_atomic, nonce=authorization.nonce, at_s=now_s),
    )
    return transaction


def _transaction_id(asset: Asset, authorization: Authorization) -> str:
    """One authorization moves once, so its identity is the transaction's."""
    identity = "/".join((*_token(asset), authorization.payer, authorization.nonce))
    return "0x" + sha256(identity.encode()).hexdigest()


def _content(authorization: Authorization) -> str:
    """All that was signed beside payer and nonce."""
    terms = (authorization.to, authorization.value_atomic, authorization.valid_after_s, authorization.valid_before_s)
    return "/".join(map(str, terms))


def _authorization(connection: sqlite3.Connection, asset: Asset, payer: str, nonce: str) -> tuple[str, str] | None:
    """Content and transaction of a nonce that is used or cancelled, or None."""
    sql = (
        "SELECT content, transaction_id FROM authorization WHERE network = ? AND asset = ? AND payer = ? AND nonce = ?"
    )
    row: tuple[str, str] | None = connection.execute(sql, (*_token(asset), payer, nonce)).fetchone()
    return row


def _balance(connection: sqlite3.Connection, asset: Asset, account: str) -> int:
    sql = "SELECT amount_atomic FROM balance WHERE network = ? AND asset = ? AND account = ?"
    row = connection.execute(sql, (*_token(asset), account)).fetchone()
    return int(row[0]) if row else 0


def _set_balance(connection: sqlite3.Connection, asset: Asset, account: str, amount_atomic: int) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO balance VALUES (?, ?, ?, ?)", (*_token(asset), account, str(amount_atomic))
    )


def _as_transfer(  # noqa: PLR0913 - the columns, in their order
    transaction: str, network: str, asset: str, payer: str, payee: str, amount: str, nonce: str, at_s: int
) -> Transfer:
    return Transfer(transaction, network, asset, payer, payee, int(amount), nonce, at_s)


def _log(connection: sqlite3.Connection, moved: Transfer) -> None:
    connection.execute(
        "INSERT INTO transfer (transaction_id, network, asset, payer, payee, amount_atomic, nonce, at_s)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            moved.transaction,
            moved.network,
            moved.asset,
            moved.payer,
            moved.payee,
            str(moved.amount_atomic),
            moved.nonce,
            moved.at_s,
        ),
    )


def _token(asset: Asset) -> tuple[str, str]:
    return asset.network.caip2, asset.address.lower()


def _holder(account: str, field: str) -> str:
    address = canonical_address(account)
    if address is None:
        raise SettingsError(field, f"{account!r} is not an address: 0x and 40 hex digits")
    return address
