// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

interface IWallet {
    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4);
}

interface IToken {
    function transferFrom(address from, address to, uint256 value) external returns (bool);
}

/// A double of Uniswap's Permit2 for tests: transfers by signature with a witness, as x402 uses them. Same interface,
/// EIP-712 types, unordered nonces, order of checks and errors. It has no state at the start and computes its domain
/// when asked: works under anvil_setCode at Permit2's address.
contract Permit2 {
    struct TokenPermissions {
        address token;
        uint256 amount;
    }

    struct PermitTransferFrom {
        TokenPermissions permitted;
        uint256 nonce;
        uint256 deadline;
    }

    struct SignatureTransferDetails {
        address to;
        uint256 requestedAmount;
    }

    /// By owner and the nonce's upper 248 bits: which of 256 nonces are used.
    mapping(address => mapping(uint256 => uint256)) public nonceBitmap;

    bytes32 private constant DOMAIN = keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)");
    bytes32 private constant TOKEN_PERMISSIONS = keccak256("TokenPermissions(address token,uint256 amount)");
    bytes private constant PERMIT_START =
        "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,";
    bytes32 private constant LOWER_255 = bytes32(type(uint256).max >> 1);

    event UnorderedNonceInvalidation(address indexed owner, uint256 word, uint256 mask);

    error SignatureExpired(uint256 signatureDeadline);
    error InvalidAmount(uint256 maxAmount);
    error InvalidNonce();
    error InvalidSignatureLength();
    error InvalidSignature();
    error InvalidSigner();
    error InvalidContractSignature();

    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN, keccak256("Permit2"), block.chainid, address(this)));
    }

    function permitWitnessTransferFrom(
        PermitTransferFrom calldata permit,
        SignatureTransferDetails calldata details,
        address owner,
        bytes32 witness,
        string calldata witnessTypeString,
        bytes calldata signature
    ) external {
        if (block.timestamp > permit.deadline) revert SignatureExpired(permit.deadline);
        if (details.requestedAmount > permit.permitted.amount) revert InvalidAmount(permit.permitted.amount);
        _use(owner, permit.nonce);
        bytes32 digest = keccak256(
            abi.encodePacked(hex"1901", DOMAIN_SEPARATOR(), _hash(permit, witness, witnessTypeString))
        );
        _check(signature, digest, owner);
        _move(permit.permitted.token, owner, details.to, details.requestedAmount);
    }

    /// The owner cancels nonces: those of a word whose bits are set in the mask.
    function invalidateUnorderedNonces(uint256 word, uint256 mask) external {
        nonceBitmap[msg.sender][word] |= mask;
        emit UnorderedNonceInvalidation(msg.sender, word, mask);
    }

    function _use(address owner, uint256 nonce) private {
        uint256 bit = 1 << (nonce & 0xff);
        uint256 used = nonceBitmap[owner][nonce >> 8];
        if (used & bit != 0) revert InvalidNonce();
        nonceBitmap[owner][nonce >> 8] = used | bit;
    }

    function _hash(PermitTransferFrom calldata permit, bytes32 witness, string calldata witnessTypeString)
        private
        view
        returns (bytes32)
    {
        bytes32 typeHash = keccak256(abi.encodePacked(PERMIT_START, witnessTypeString));
        bytes32 permitted =
            keccak256(abi.encode(TOKEN_PERMISSIONS, permit.permitted.token, permit.permitted.amount));
        return keccak256(abi.encode(typeHash, permitted, msg.sender, permit.nonce, permit.deadline, witness));
    }

    function _check(bytes calldata signature, bytes32 digest, address owner) private view {
        if (owner.code.length != 0) {
            bytes4 answer = IWallet(owner).isValidSignature(digest, signature);
            if (answer != IWallet.isValidSignature.selector) revert InvalidContractSignature();
            return;
        }
        address signer = _signer(signature, digest);
        if (signer == address(0)) revert InvalidSignature();
        if (signer != owner) revert InvalidSigner();
    }

    /// Of 65 bytes, or of 64 with the parity in the highest bit of s (EIP-2098).
    function _signer(bytes calldata signature, bytes32 digest) private pure returns (address) {
        if (signature.length != 65 && signature.length != 64) revert InvalidSignatureLength();
        bytes32 r = bytes32(signature[0:32]);
        bytes32 s = bytes32(signature[32:64]);
        if (signature.length == 65) return ecrecover(digest, uint8(signature[64]), r, s);
        return ecrecover(digest, uint8(uint256(s) >> 255) + 27, r, s & LOWER_255);
    }

    /// A token that returns nothing has moved the money, too.
    function _move(address token, address from, address to, uint256 amount) private {
        (bool done, bytes memory returned) = token.call(abi.encodeCall(IToken.transferFrom, (from, to, amount)));
        require(done, "TRANSFER_FROM_FAILED");
        bool isTrue = returned.length == 0 ? token.code.length != 0 : abi.decode(returned, (bool));
        require(isTrue, "TRANSFER_FROM_FAILED");
    }
}
