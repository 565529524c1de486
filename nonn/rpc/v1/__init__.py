"""Generated from ``proto/nonn/rpc/v1`` by ``make stubs``; do not edit."""
