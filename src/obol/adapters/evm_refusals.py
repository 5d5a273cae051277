"""What a node's error says of a transaction that was broadcast to it.

Nodes have texts and hardly any codes, and each has its own. Only what is known to mean that the node has not kept the
transaction counts as a refusal; with any other error it may have it. Sources: the transaction pools of geth, reth,
erigon, nethermind, besu, nitro, anvil and hardhat.
"""

import re
from enum import Enum


class Meaning(Enum):
    """What is true of a transaction after a node's answer."""

    KEPT = "kept"
    """The node has it, now or before."""
    LOST = "lost"
    """It may have it: there was no answer."""
    UNCLEAR = "unclear"
    """It may have it: its error says nothing that we know."""
    EARLY = "early"
    """It wants those before it first: to be sent again, soon."""
    RIVAL = "rival"
    """Another transaction of this nonce waits there, and is not outbid."""
    USED = "used"
    """A transaction of this nonce is in the chain already."""
    POOR = "poor"
    """Not kept: the account cannot pay for it now."""
    CHEAP = "cheap"
    """Not kept: it offers too little, now or while there is no room."""
    REFUSED = "refused"
    """Not kept, and never will be."""


PROOFS = frozenset({Meaning.USED, Meaning.POOR, Meaning.CHEAP, Meaning.REFUSED})
"""The node that answers so has not kept the transaction."""

_TEXTS = {
    Meaning.KEPT: r"already known|known transaction|already imported|already exists?|already in the|same hash",
    Meaning.EARLY: r"nonce (is )?too (high|far|distant)|nonce gap|gapped nonce|future (nonce|transaction)"
    r"|(invalid|incorrect|wrong) (transaction )?nonce|in flight transaction limit",
    Meaning.RIVAL: r"replac\w*|same nonce|own nonce already used",
    Meaning.USED: r"nonce (is )?too (low|small)|nonce (has )?already( been)? used|old nonce|stale",
    Meaning.POOR: r"insufficient (funds|balance)|enough (funds|balance)|exceeds (the )?(account |sender )?balance",
    Meaning.CHEAP: r"underpriced|(\w*pool|queue) (is )?full|dropped due to limit|too low for the next block"
    r"|less than (the )?(block |current )?(base fee|gas price minimum)"
    r"|(gas price|fee|fee per gas|tip) (is )?(too low|below)|below (the )?(configured )?minimum",
    Meaning.REFUSED: r"gas limit|intrinsic gas|floor data gas|gas uint64|gas (is )?too (low|high)|oversized"
    r"|too (large|big)|invalid (sender|signature|chain|transaction|rlp)|chain id|not (supported|permitted)"
    r"|only replay protected|exceeds (the )?(configured )?(cap|maximum|allowance)|cap exceeded|higher than max fee"
    r"|insufficient allowance|initcode|not an eoa|sender is contract|negative value|execution reverted|forbidden"
    r"|banned|black ?list(ed)?",
}
"""In the order in which they are tried."""
_RULES = tuple((meaning, re.compile(rf"\b(?:{pattern})\b")) for meaning, pattern in _TEXTS.items())
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NO_WORD = re.compile(r"[^a-z0-9]+")


def meaning_of(text: str) -> Meaning:
    """What a node's error text says; the first rule that finds its words decides."""
    words = _NO_WORD.sub(" ", _HUMP.sub(" ", text).lower())
    return next((meaning for meaning, rule in _RULES if rule.search(words)), Meaning.UNCLEAR)
