// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import "./Wallet1271.sol";

/// Deploys a contract wallet at an address that is known before it is there (CREATE2), once. For tests of ERC-6492.
contract WalletFactory {
    function create(address owner, bytes32 salt) external returns (address wallet) {
        wallet = addressOf(owner, salt);
        if (wallet.code.length == 0) new Wallet1271{salt: salt}(owner);
    }

    function addressOf(address owner, bytes32 salt) public view returns (address) {
        bytes32 creation = keccak256(abi.encodePacked(type(Wallet1271).creationCode, abi.encode(owner)));
        return address(uint160(uint256(keccak256(abi.encodePacked(hex"ff", address(this), salt, creation)))));
    }
}
