//! Reading safetensors files part by part.
//!
//! The files are read, not mapped: a mapped file that another process shortens ends this process
//! with SIGBUS, but a read of it is an error that names the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo};

/// The length of the header's own length.
const LENGTH_BYTES: u64 = 8;
/// The longest header that safetensors allows.
const LONGEST_HEADER: u64 = 100_000_000;
/// The beginning of a file that git wrote in place of one that Git LFS did not fetch.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// A safetensors file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(transparent)]
    Damaged(#[from] SafeTensorError),
    #[error("it is a Git LFS pointer, not the weights")]
    Pointer,
}

/// An open safetensors file whose header is valid and fits its length.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// The place of the first tensor's first byte.
    start: u64,
    bytes: u64,
}

impl TensorFile {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    /// The file cannot be read, or its header is damaged or does not fit its length.
    pub fn open(path: &Path) -> Result<Self, TensorFileError> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let header = header_of(&file, bytes).map_err(|error| match error {
            TensorFileError::Damaged(_) if is_pointer(&file) => TensorFileError::Pointer,
            other => other,
        })?;
        let start = bytes - header.data_len() as u64;
        Ok(Self { path: path.to_owned(), file, header, start, bytes })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The names of all tensors in the order of their bytes.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Type, shape and place of a tensor, if it exists.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    /// Fills `buffer` with the bytes of `tensor` from byte `from` on.
    ///
    /// # Errors
    /// The file cannot be read, or was shortened after it was opened.
    pub fn read(&self, tensor: &TensorInfo, from: usize, buffer: &mut [u8]) -> io::Result<()> {
        let place = self.start + (tensor.data_offsets.0 + from) as u64;
        self.file.read_exact_at(buffer, place).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), "the file became shorter while it was read")
            }
            _ => error,
        })
    }
}

/// Reads and checks the header of a file of `bytes` bytes.
fn header_of(file: &File, bytes: u64) -> Result<Metadata, TensorFileError> {
    if bytes < LENGTH_BYTES {
        return Err(SafeTensorError::HeaderTooSmall.into());
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(SafeTensorError::HeaderTooLarge.into());
    }
    if length > bytes - LENGTH_BYTES {
        return Err(SafeTensorError::InvalidHeaderLength.into());
    }
    let mut text = vec![0; length as usize];
    file.read_exact_at(&mut text, LENGTH_BYTES)?;
    let header: Metadata =
        serde_json::from_slice(&text).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    match header.data_len() as u64 == bytes - LENGTH_BYTES - length {
        true => Ok(header),
        false => Err(SafeTensorError::MetadataIncompleteBuffer.into()),
    }
}

fn is_pointer(file: &File) -> bool {
    let mut beginning = [0; LFS_POINTER.len()];
    file.read_exact_at(&mut beginning, 0).is_ok_and(|()| beginning == LFS_POINTER)
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let bytes: Vec<u8> = (0..16).collect();
        let views = [("a", 0..4), ("b", 4..16)].map(|(name, place)| {
            let shape = vec![place.len() / 4];
            (name, TensorView::new(Dtype::F32, shape, &bytes[place]).unwrap())
        });
        serialize_to_file(views, None, &path).unwrap();
        (folder, path)
    }

    #[test]
    fn parts_of_tensors_are_read() {
        let (_folder, path) = file();
        let tensors = TensorFile::open(&path).unwrap();
        let tensor = tensors.tensor("b").unwrap();
        assert_eq!((tensors.names().len(), tensor.shape.as_slice()), (2, &[3][..]));
        let mut part = [0; 4];
        tensors.read(tensor, 8, &mut part).unwrap();
        assert_eq!(part, [12, 13, 14, 15]);
        assert!(tensors.tensor("c").is_none());
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let (_folder, path) = file();
        let tensors = TensorFile::open(&path).unwrap();
        let length = tensors.bytes() - 1;
        File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        let error = tensors.read(tensors.tensor("b").unwrap(), 0, &mut [0; 12]).unwrap_err();
        assert_eq!(error.to_string(), "the file became shorter while it was read");
        let error = TensorFile::open(&path).unwrap_err();
        assert!(matches!(
            error,
            TensorFileError::Damaged(SafeTensorError::MetadataIncompleteBuffer)
        ));
    }

    #[test]
    fn damaged_headers_are_errors() {
        let (_folder, path) = file();
        for (bytes, message) in [
            (&b""[..], "header too small"),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff{}", "header too large"),
            (b"\x09\0\0\0\0\0\0\0{}", "invalid header length"),
            (b"\x02\0\0\0\0\0\0\0{]", "invalid JSON in header"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = TensorFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
