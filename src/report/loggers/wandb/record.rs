//! The bytes of wandb's transaction log (`run-ID.wandb`): protobuf messages in LevelDB's log
//! format.
//!
//! The file begins with `:W&B`, the number 0xbee1 and a version byte. Then come blocks of 32 KiB
//! (the first one includes these 7 bytes). A block holds chunks: CRC-32 of type and data, length
//! (u16), type, data. A record is one full chunk, or a first, some middle and a last one.

/// The first bytes of the file.
pub const HEADER: [u8; 7] = [b':', b'W', b'&', b'B', 0xe1, 0xbe, 0];
const BLOCK: usize = 32 * 1024;
const CHUNK_HEADER: usize = 7;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// Appends a record to `out`. `written` is the length of the file before `out`.
pub fn append(out: &mut Vec<u8>, written: u64, record: &[u8]) {
    let mut rest = record;
    let mut is_first = true;
    loop {
        let place = ((written + out.len() as u64) % BLOCK as u64) as usize;
        let mut room = BLOCK - place;
        if room < CHUNK_HEADER {
            out.resize(out.len() + room, 0);
            room = BLOCK;
        }
        let (chunk, later) = rest.split_at(rest.len().min(room - CHUNK_HEADER));
        let kind = match (is_first, later.is_empty()) {
            (true, true) => FULL,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        out.extend_from_slice(&checksum(kind, chunk).to_le_bytes());
        // A chunk is shorter than a block.
        out.extend_from_slice(&(chunk.len() as u16).to_le_bytes());
        out.push(kind);
        out.extend_from_slice(chunk);
        rest = later;
        is_first = false;
        if rest.is_empty() {
            return;
        }
    }
}

fn checksum(kind: u8, chunk: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(chunk);
    hasher.finalize()
}

/// The records of a file, up to the first damaged one.
pub fn read(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut record = Vec::new();
    let mut at = HEADER.len();
    if !bytes.starts_with(&HEADER) {
        return records;
    }
    loop {
        let room = BLOCK - at % BLOCK;
        if room < CHUNK_HEADER {
            at += room;
        }
        let Some((kind, chunk)) = chunk_at(bytes, at) else { return records };
        at += CHUNK_HEADER + chunk.len();
        if kind == FULL || kind == FIRST {
            record.clear();
        }
        record.extend_from_slice(chunk);
        if kind == FULL || kind == LAST {
            records.push(std::mem::take(&mut record));
        }
    }
}

fn chunk_at(bytes: &[u8], at: usize) -> Option<(u8, &[u8])> {
    let (header, rest) = bytes.get(at..)?.split_first_chunk::<CHUNK_HEADER>()?;
    let [a, b, c, d, low, high, kind] = *header;
    let chunk = rest.get(..usize::from(u16::from_le_bytes([low, high])))?;
    (checksum(kind, chunk) == u32::from_le_bytes([a, b, c, d])).then_some((kind, chunk))
}

/// A protobuf message that is being built.
#[derive(Debug, Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// Adds a text.
    pub fn text(self, field: u32, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    /// Adds a whole number, or true as 1.
    pub fn number(mut self, field: u32, number: u64) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(number);
        self
    }

    /// Adds a message.
    pub fn message(self, field: u32, message: &Message) -> Self {
        self.bytes(field, &message.0)
    }

    /// The encoded message.
    pub fn encoded(&self) -> &[u8] {
        &self.0
    }

    fn bytes(mut self, field: u32, bytes: &[u8]) -> Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// The fields of a message that hold bytes (texts and messages), in their order. Other fields are
/// skipped; what follows a damaged field is missing.
pub fn byte_fields(mut bytes: &[u8]) -> Vec<(u32, &[u8])> {
    let mut fields = Vec::new();
    while let Some(key) = take_varint(&mut bytes) {
        let field = (key >> 3) as u32;
        let length = match key & 7 {
            0 => take_varint(&mut bytes).map(|_| 0),
            1 => Some(8),
            2 => take_varint(&mut bytes),
            5 => Some(4),
            _ => None,
        };
        let length = length.and_then(|length| usize::try_from(length).ok());
        let Some((value, rest)) = length.and_then(|length| bytes.split_at_checked(length)) else {
            break;
        };
        if key & 7 == 2 {
            fields.push((field, value));
        }
        bytes = rest;
    }
    fields
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_framing_is_wandbs() {
        let mut out = HEADER.to_vec();
        append(&mut out, 0, b"ab");
        assert_eq!(out[..7], *b":W&B\xe1\xbe\x00");
        assert_eq!(out[7..11], crc32fast::hash(b"\x01ab").to_le_bytes());
        assert_eq!(out[11..], [2, 0, FULL, b'a', b'b']);
    }

    #[test]
    fn records_of_any_length_come_back() {
        let lengths = [0, 1, 500, BLOCK - 521, BLOCK - 7, BLOCK - 6, 3 * BLOCK, 100_000, 5];
        let records: Vec<Vec<u8>> = (0..).zip(lengths).map(|(n, l)| vec![n; l]).collect();
        let mut whole = HEADER.to_vec();
        for record in &records {
            append(&mut whole, 0, record);
        }
        assert_eq!(read(&whole), records);
        // The same bytes if each record is appended by itself.
        let mut file = HEADER.to_vec();
        for record in &records {
            let mut out = Vec::new();
            append(&mut out, file.len() as u64, record);
            file.extend(out);
        }
        assert!(file == whole);
        let cut = whole.len() - 2;
        assert_eq!(read(&whole[..cut]), records[..records.len() - 1]);
        let mut damaged = whole;
        damaged[20] ^= 1;
        assert_eq!(read(&damaged).len(), 1);
        assert!(read(b":W&B").is_empty());
    }

    #[test]
    fn messages_are_protobuf() {
        // `{1: 150}` and `{2: "testing"}` are the examples of protobuf's documentation.
        assert_eq!(Message::default().number(1, 150).encoded(), [0x08, 0x96, 0x01]);
        let text = Message::default().text(2, "testing");
        assert_eq!(text.encoded(), b"\x12\x07testing");
        let outer = Message::default().number(200, 1).message(16, &text).text(3, "x");
        let fields = byte_fields(outer.encoded());
        assert_eq!(fields, [(16, text.encoded()), (3, b"x".as_slice())]);
        assert!(byte_fields(&[0x12, 0x07, 0x74]).is_empty());
    }
}
