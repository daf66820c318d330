//! The one error type of the crate. `Display` is one line that names what was wrong and the remedy.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong. Every variant says where; none is a catch-all.
#[non_exhaustive]
#[derive(Debug)]
pub enum Error {
    /// An op was given shapes, dtypes or devices that do not fit together.
    Shape { op: &'static str, problem: String },
    /// The op does not exist for this device or dtype.
    Unsupported { op: &'static str, problem: String },
    /// A gradient was asked for through an op that has none.
    NotDifferentiable { op: &'static str },
    /// No usable CUDA device; `problem` says why and what to do.
    NoCuda { problem: String },
    /// The CUDA driver reported a failure.
    Cuda { what: String, problem: String },
    /// A file's content is not what it should be.
    File { path: PathBuf, problem: String },
    /// The operating system refused an operation on a file.
    Io { path: PathBuf, source: std::io::Error },
    /// An option or a combination of options is unusable.
    Config { option: String, problem: String },
    /// Training produced a value that is not finite, or ran away.
    Diverged { what: String, step: usize, problem: String },
    /// Ctrl-C: the state was saved at `resume` (if anywhere).
    Interrupted { resume: Option<PathBuf> },
    /// A training that has no state to resume was stopped; a whole epoch's result is there.
    Stopped { saved: PathBuf },
}

impl Error {
    pub fn shape(op: &'static str, problem: impl Into<String>) -> Self {
        Error::Shape { op, problem: problem.into() }
    }
    pub fn config(option: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Config { option: option.into(), problem: problem.into() }
    }
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), problem: problem.into() }
    }
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Shape { op, problem } => write!(f, "{op}: {problem}"),
            Error::Unsupported { op, problem } => write!(f, "{op}: not supported here: {problem}"),
            Error::NotDifferentiable { op } => write!(f, "{op} has no derivative; ask for gradients through other ops only"),
            Error::NoCuda { problem } => write!(f, "no CUDA device: {problem}"),
            Error::Cuda { what, problem } => write!(f, "CUDA: {what}: {problem}"),
            Error::File { path, problem } => write!(f, "{}: {problem}", path.display()),
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Config { option, problem } => write!(f, "{option}: {problem}"),
            Error::Diverged { what, step, problem } => write!(f, "{what} at iteration {step}: {problem}"),
            Error::Interrupted { resume: Some(path) } => {
                write!(f, "interrupted; continue with --resume ({} holds the state)", path.display())
            }
            Error::Stopped { saved } => write!(f, "interrupted; {} is what the last whole epoch left: go on from it with --from", saved.display()),
            Error::Interrupted { resume: None } => write!(f, "interrupted; nothing was saved yet"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
