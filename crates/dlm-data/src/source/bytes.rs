//! The bytes of a text file: decompressed, without a byte order mark, hashed on the way.

use super::format::Compression;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Bytes that are read at a time.
const BUFFER: usize = 1 << 18;
/// How UTF-8 says that it is UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The content of a file.
pub(crate) type Content = Box<dyn BufRead + Send>;

/// Opens a file for reading its content.
pub(crate) fn open(path: &Path, compression: Compression) -> io::Result<Content> {
    content(File::open(path)?, compression)
}

/// Opens a file that is not compressed, and hashes what is read of it.
pub(crate) fn open_hashed(path: &Path) -> io::Result<(Content, Arc<Mutex<Sha256>>)> {
    let hash = Arc::new(Mutex::new(Sha256::new()));
    let file = Hashed { file: File::open(path)?, hash: Arc::clone(&hash) };
    Ok((content(file, Compression::None)?, hash))
}

fn content(file: impl Read + Send + 'static, compression: Compression) -> io::Result<Content> {
    // Each reader takes files that were appended to each other as one.
    let mut content: Content = match compression {
        Compression::None => Box::new(BufReader::with_capacity(BUFFER, file)),
        Compression::Gzip => buffered(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, file))),
        Compression::Zstd => buffered(zstd::stream::read::Decoder::new(file)?),
        Compression::Bzip2 => buffered(bzip2::bufread::MultiBzDecoder::new(BufReader::with_capacity(BUFFER, file))),
        Compression::Xz => buffered(liblzma::read::XzDecoder::new_multi_decoder(file)),
    };
    // A file that is cut off before its first byte is reported where rows are read.
    if content.fill_buf().is_ok_and(|start| start.starts_with(BYTE_ORDER_MARK)) {
        content.consume(BYTE_ORDER_MARK.len());
    }
    Ok(content)
}

fn buffered(decoder: impl Read + Send + 'static) -> Content {
    Box::new(BufReader::with_capacity(BUFFER, Lasting { decoder, failed: None }))
}

/// A decoder that has failed goes on failing: some would call it the end of the file when they are asked again.
struct Lasting<R> {
    decoder: R,
    failed: Option<(io::ErrorKind, String)>,
}

impl<R: Read> Read for Lasting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some((kind, message)) = &self.failed {
            return Err(io::Error::new(*kind, message.clone()));
        }
        let read = self.decoder.read(buffer);
        if let Err(error) = &read
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.failed = Some((error.kind(), error.to_string()));
        }
        read
    }
}

struct Hashed {
    file: File,
    hash: Arc<Mutex<Sha256>>,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hash.lock().unwrap_or_else(PoisonError::into_inner).update(&buffer[..read]);
        Ok(read)
    }
}
