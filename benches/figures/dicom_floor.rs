//! The floor for DICOM: an archive that does the least that our promise needs: receive, encrypt, write, sync, answer. It accepts every
//! context, knows C-ECHO and C-STORE of a lawful sender, and keeps no index.
//!
//! A process of its own: `figures floor dicom LISTEN FOLDER`. One file for each association, whose beginning was written through before,
//! as wardgate's files are; a sync for each object.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::TcpStreamExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Bytes that are encrypted and written at once.
const BLOCK: usize = 256 * 1024;
/// Files that are ready: for so many associations.
const FILES: u64 = 4;
/// Bytes of each that were written through.
const READY: usize = 256 << 20;
/// Longest P-DATA that we ask for.
const MAXIMUM: u32 = 128 * 1024;
/// Element numbers of a command set (PS3.7 annex E).
const CLASS: u16 = 2;
const COMMAND: u16 = 0x100;
const MESSAGE: u16 = 0x110;
const DATA: u16 = 0x800;
const INSTANCE: u16 = 0x1000;

/// Serves until it is killed.
pub fn serve(arguments: &[String]) {
    let [listen, folder] = arguments else { panic!("floor dicom LISTEN FOLDER") };
    (0..FILES).for_each(|number| make_ready(&Path::new(folder).join(number.to_string())));
    let listener = TcpListener::bind(listen).unwrap();
    let number = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for stream in listener.incoming().flatten() {
            let name = number.fetch_add(1, Ordering::Relaxed).to_string();
            scope.spawn(move || converse(stream, &Path::new(folder).join(name)));
        }
    });
}

/// Writes a file through, so that what is written to it later needs no new blocks.
fn make_ready(path: &Path) {
    let mut file = File::create(path).unwrap();
    let zeros = vec![0; BLOCK];
    (0..READY / BLOCK).for_each(|_| file.write_all(&zeros).unwrap());
    file.sync_all().unwrap();
}

/// Sealed blocks on their way to the disk.
struct Sealed {
    key: LessSafeKey,
    blocks: u64,
    block: Vec<u8>,
    file: File,
}

impl Sealed {
    fn create(path: &Path) -> Self {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
        Self {
            key,
            blocks: 0,
            block: Vec::with_capacity(BLOCK + 16),
            file: File::options().write(true).create(true).truncate(false).open(path).unwrap(),
        }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK {
                self.write();
            }
        }
    }

    fn write(&mut self) {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.blocks.to_le_bytes());
        self.blocks += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut self.block).unwrap();
        self.file.write_all(&self.block).unwrap();
        self.block.clear();
    }

    fn sync(&mut self) {
        self.write();
        self.file.sync_data().unwrap();
    }
}

fn converse(stream: TcpStream, path: &Path) {
    stream.set_nodelay(true).unwrap();
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::with_capacity(1 << 17, stream));
    let (mut sealed, mut body, mut command) = (None, Vec::new(), Vec::new());
    let mut asked = Vec::new();
    loop {
        // A sender that waits for an acknowledgement of TCP gets it at once.
        reader.get_ref().set_quickack(true).unwrap();
        match read_pdu(&mut reader, &mut body) {
            Some(1) => writer.write_all(&accepted(&body)).unwrap(),
            Some(4) => {
                for (context, flags, value) in fragments(&body) {
                    if flags & 1 != 0 {
                        command.extend_from_slice(value);
                        if flags & 2 != 0 {
                            asked = std::mem::take(&mut command);
                        }
                    } else {
                        sealed.get_or_insert_with(|| Sealed::create(path)).add(value);
                    }
                    if flags & 2 != 0 && (flags & 1 == 0 || found(&asked, DATA) == Some(&[1, 1])) {
                        sealed.iter_mut().for_each(Sealed::sync);
                        writer.write_all(&answer(context, &asked)).unwrap();
                    }
                }
            }
            Some(5) => writer.write_all(&pdu(6, &[0; 4])).unwrap(),
            _ => return,
        }
    }
}

fn read_pdu(reader: &mut impl Read, body: &mut Vec<u8>) -> Option<u8> {
    let mut head = [0; 6];
    reader.read_exact(&mut head).ok()?;
    body.resize(u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize, 0);
    reader.read_exact(body).ok()?;
    Some(head[0])
}

fn pdu(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

fn item(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

fn items(mut body: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    while let [kind, _, high, low, rest @ ..] = body {
        let (value, later) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        found.push((*kind, value));
        body = later;
    }
    found
}

/// A-ASSOCIATE-AC: the first transfer syntax of each context.
fn accepted(request: &[u8]) -> Vec<u8> {
    let (fixed, variable) = request.split_at(68);
    let mut body = [fixed, &item(0x10, b"1.2.840.10008.3.1.1.1")].concat();
    for (_, context) in items(variable).into_iter().filter(|(kind, _)| *kind == 0x20) {
        let syntax = items(&context[4..]).into_iter().find(|(kind, _)| *kind == 0x40).unwrap().1;
        body.extend(item(0x21, &[&[context[0], 0, 0, 0], item(0x40, syntax).as_slice()].concat()));
    }
    let user = [item(0x51, &MAXIMUM.to_be_bytes()), item(0x52, b"1.2.826.0.1.3680043.10.999.0")].concat();
    body.extend(item(0x50, &user));
    pdu(2, &body)
}

/// The context, the flags and the bytes of each fragment.
fn fragments(mut body: &[u8]) -> Vec<(u8, u8, &[u8])> {
    let mut found = Vec::new();
    while let [a, b, c, d, context, flags, rest @ ..] = body {
        let (value, later) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize - 2);
        found.push((*context, *flags, value));
        body = later;
    }
    found
}

fn found(mut command: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [0, 0, low, high, a, b, c, d, rest @ ..] = command {
        let (value, later) = rest.split_at(u32::from_le_bytes([*a, *b, *c, *d]) as usize);
        if u16::from_le_bytes([*low, *high]) == wanted {
            return Some(value);
        }
        command = later;
    }
    None
}

fn element(number: u16, value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_le_bytes();
    [&[0, 0][..], &number.to_le_bytes(), &length, value].concat()
}

fn answer(context: u8, asked: &[u8]) -> Vec<u8> {
    let field = found(asked, COMMAND).unwrap();
    let mut body = element(CLASS, found(asked, CLASS).unwrap());
    body.extend(element(COMMAND, &[field[0], field[1] | 0x80]));
    body.extend(element(0x120, found(asked, MESSAGE).unwrap()));
    body.extend(element(DATA, &[1, 1]));
    body.extend(element(0x900, &[0, 0]));
    if let Some(instance) = found(asked, INSTANCE) {
        body.extend(element(INSTANCE, instance));
    }
    let set = [element(0, &u32::try_from(body.len()).unwrap().to_le_bytes()), body].concat();
    let length = u32::try_from(set.len() + 2).unwrap().to_be_bytes();
    pdu(4, &[&length[..], &[context, 3], &set].concat())
}
