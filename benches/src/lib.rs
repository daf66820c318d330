//! Holds no code: the benches beside this file are what this package is for.
