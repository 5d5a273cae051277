// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// Runs several calls in one transaction; one that fails takes none of the others with it.
///
/// For calls that anybody may make, and that do the same whoever makes them: settlements of signed payments. Anybody may
/// run anything here in this contract's name, so it must never own or be allowed anything: it has no owner, no state and
/// takes no ether; tokens sent to it, approved for it or paid to it are anybody's.
contract Batcher {
    struct Call {
        address target;
        bytes data;
        uint256 gasLimit;
    }

    /// Bit i of `succeeded`: call i was to a contract, and did not revert.
    event Ran(uint256 succeeded);

    error TooManyCalls();
    error NotEnoughGas(uint256 index);

    /// For what a call and what follows it costs this contract itself.
    uint256 private constant RESERVE_GAS = 10_000;

    /// Each call gets its `gasLimit` and no more, so none can use up the others'. It gets no less, either: where so much
    /// is not left, everything reverts, for a call that failed for want of gas would look like one that was refused.
    function run(Call[] calldata calls) external returns (uint256 succeeded) {
        if (calls.length > 256) revert TooManyCalls();
        for (uint256 i = 0; i < calls.length; ++i) {
            Call calldata one = calls[i];
            // A call is given at most 63/64 of what is left. The first comparison keeps the sum from overflowing.
            if (one.gasLimit > gasleft() || gasleft() < one.gasLimit + one.gasLimit / 63 + RESERVE_GAS) {
                revert NotEnoughGas(i);
            }
            if (one.target.code.length != 0 && _call(one.target, one.data, one.gasLimit)) succeeded |= 1 << i;
        }
        emit Ran(succeeded);
    }

    /// What a call returns is not copied: it could be long, and would be paid for here.
    function _call(address target, bytes calldata data, uint256 gasLimit) private returns (bool done) {
        assembly ("memory-safe") {
            let start := mload(0x40)
            calldatacopy(start, data.offset, data.length)
            done := call(gasLimit, target, 0, start, data.length, 0, 0)
        }
    }
}
