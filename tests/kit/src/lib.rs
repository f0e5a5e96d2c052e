//! Handlers and helpers that warpmail's own tests use.
