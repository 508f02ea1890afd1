//! Wasm that was compressed when it was published: a layer whose media type ends in `+gzip` or `+zstd`.
//!
//! The format is recognized by its first bytes, as containerd does for layers of root filesystems. The worker decompresses,
//! since the bytes are hostile.

use std::borrow::Cow;
use std::io::{self, Read};

use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use crate::image::MOST_WASM;

/// What a gzip file begins with (RFC 1952, section 2.3.1).
const GZIP: &[u8] = &[0x1f, 0x8b];
/// What a Zstandard frame begins with (RFC 8878, section 3.1.1).
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Why compressed bytes are no wasm.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    #[error("decompressing the {format} data failed: {cause}")]
    Malformed { format: &'static str, cause: io::Error },
    #[error(
        "the {format} data has more than {most} bytes when it is decompressed, which is the most that is supported"
    )]
    TooLarge { format: &'static str, most: u64 },
}

/// Whether these are the first bytes of a format that [`decompress`] knows.
pub fn is_compressed(head: &[u8]) -> bool {
    head.starts_with(GZIP) || head.starts_with(ZSTD)
}

/// The bytes themselves, or what they are the compressed form of.
///
/// # Errors
///
/// When they are malformed, or more than [`MOST_WASM`] bytes come of them.
pub fn decompress(bytes: &[u8]) -> Result<Cow<'_, [u8]>, CompressionError> {
    decompress_up_to(bytes, MOST_WASM)
}

fn decompress_up_to(bytes: &[u8], most: u64) -> Result<Cow<'_, [u8]>, CompressionError> {
    if bytes.starts_with(GZIP) {
        let mut decompressed = Vec::new();
        append(
            "gzip",
            flate2::read::MultiGzDecoder::new(bytes),
            &mut decompressed,
            most,
        )?;
        Ok(Cow::Owned(decompressed))
    } else if bytes.starts_with(ZSTD) {
        zstd_frames(bytes, most).map(Cow::Owned)
    } else {
        Ok(Cow::Borrowed(bytes))
    }
}

/// The content of all frames one after the other, as zstd(1) has it; skippable ones have none (RFC 8878, section 3.1).
fn zstd_frames(mut bytes: &[u8], most: u64) -> Result<Vec<u8>, CompressionError> {
    let malformed = |cause| CompressionError::Malformed { format: "zstd", cause };
    let mut decompressed = Vec::new();
    while !bytes.is_empty() {
        match StreamingDecoder::new(&mut bytes) {
            Ok(frame) => append("zstd", frame, &mut decompressed, most)?,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let rest = bytes.get(length as usize..);
                bytes = rest.ok_or_else(|| malformed(io::ErrorKind::UnexpectedEof.into()))?;
            }
            Err(error) => return Err(malformed(io::Error::other(error.to_string()))),
        }
    }
    Ok(decompressed)
}

/// Reads `decoder` to its end; all of `decompressed` may have `most` bytes.
fn append(
    format: &'static str,
    decoder: impl Read,
    decompressed: &mut Vec<u8>,
    most: u64,
) -> Result<(), CompressionError> {
    let room = most.saturating_sub(decompressed.len() as u64);
    let read = decoder.take(room + 1).read_to_end(decompressed);
    let read = read.map_err(|cause| CompressionError::Malformed { format, cause })?;
    match read as u64 > room {
        true => Err(CompressionError::TooLarge { format, most }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const WASM: &[u8] = b"\0asm\x01\0\0\0";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn both_formats_are_recognized_by_their_first_bytes() {
        for compressed in [gzip(WASM), zstd(WASM)] {
            assert!(is_compressed(&compressed));
            assert_eq!(decompress(&compressed).expect("wasm"), WASM);
        }
        assert!(!is_compressed(WASM));
        assert_eq!(decompress(WASM).expect("wasm"), WASM);
    }

    #[test]
    fn cut_and_altered_data_is_malformed() {
        for (format, compressed) in [("gzip", gzip(WASM)), ("zstd", zstd(WASM))] {
            let error = decompress(&compressed[..compressed.len() - 3]).expect_err("cut");
            assert!(error.to_string().contains(format), "{error}");
        }
    }

    #[test]
    fn all_members_and_frames_count_and_skippable_frames_have_no_content() {
        let (first, second) = WASM.split_at(3);
        let skippable = [b"\x50\x2a\x4d\x18\x02\0\0\0", b"xx".as_slice()].concat();
        for compressed in [
            [gzip(first), gzip(second)].concat(),
            [zstd(first), skippable.clone(), zstd(second), skippable.clone()].concat(),
        ] {
            assert_eq!(decompress(&compressed).expect("wasm"), WASM);
        }
        assert!(decompress(&[zstd(WASM), b"rest".to_vec()].concat()).is_err());
        assert!(decompress(&[zstd(WASM), skippable[..9].to_vec()].concat()).is_err());
        let two = [zstd(&[0; 600]), zstd(&[0; 600])].concat();
        assert!(matches!(
            decompress_up_to(&two, 1000),
            Err(CompressionError::TooLarge { .. })
        ));
    }

    #[test]
    fn what_grows_beyond_the_limit_is_refused() {
        for bomb in [gzip(&[0; 1001]), zstd(&[0; 1001])] {
            let refused = decompress_up_to(&bomb, 1000);
            assert!(matches!(refused, Err(CompressionError::TooLarge { most: 1000, .. })));
            assert_eq!(decompress_up_to(&bomb, 1001).expect("no more than that").len(), 1001);
        }
    }
}
