//! Tests against other programs that read Favonius's checkpoints. This library is empty: see
//! `tests/`. The crate keeps the other programs out of the dependencies of the main package.
