//! Writing a file from front to back.

use std::io::{self, Seek, SeekFrom, Write};

use crate::format::{
    BRANCH, BUCKET, ELEMENT_BYTES, FREELIST, HEADER_BYTES, LEAF, MAGIC, META, VERSION, fnv1a,
};

const PAGE_BYTES: usize = 4096;
/// Behind the two metas.
const FIRST_PAGE: u64 = 2;

/// Makes a file. Nothing in it is valid before [`Writer::finish`].
#[derive(Debug)]
pub struct Writer<F> {
    file: F,
    next_page: u64,
    /// Name and root page of each bucket.
    buckets: Vec<(Vec<u8>, u64)>,
}

/// An element of a page, in memory.
#[derive(Debug)]
struct Element {
    key: Vec<u8>,
    /// Of a leaf: the value. Empty in a branch.
    value: Vec<u8>,
    /// Of a leaf: flags. Of a branch: the page.
    number: u64,
}

/// The elements of a page that is not full yet.
#[derive(Debug, Default)]
struct Pending {
    elements: Vec<Element>,
    bytes: usize,
}

impl Pending {
    fn has_room_for(&self, element: &Element) -> bool {
        self.elements.is_empty() || HEADER_BYTES + self.bytes + element.bytes() <= PAGE_BYTES
    }

    fn push(&mut self, element: Element) {
        self.bytes += element.bytes();
        self.elements.push(element);
    }
}

impl Element {
    fn bytes(&self) -> usize {
        ELEMENT_BYTES + self.key.len() + self.value.len()
    }
}

impl<F: Write + Seek> Writer<F> {
    /// Begins a file: `file` is empty.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(mut file: F) -> io::Result<Writer<F>> {
        // The metas come last, once everything they tell is known.
        file.write_all(&[0; FIRST_PAGE as usize * PAGE_BYTES])?;
        Ok(Writer { file, next_page: FIRST_PAGE, buckets: Vec::new() })
    }

    /// Begins a bucket. Names are given once each, in any order.
    pub fn bucket(&mut self, name: &[u8]) -> Bucket<'_, F> {
        Bucket { writer: self, name: name.to_vec(), leaf: Pending::default(), branches: Vec::new() }
    }

    /// Completes the file, and returns it with its size in bytes. It is not synced.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> io::Result<(F, u64)> {
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.sort();
        let mut root =
            Bucket { writer: &mut self, name: Vec::new(), leaf: Pending::default(), branches: Vec::new() };
        for (name, page) in buckets {
            let value = [page.to_le_bytes(), 0u64.to_le_bytes()].concat();
            root.push(Element { key: name, value, number: u64::from(BUCKET) })?;
        }
        let root = root.write_tree()?;
        let freelist = self.page(FREELIST, 0, &[])?;
        for number in 0..FIRST_PAGE {
            // The first one is of the newer transaction.
            let transaction = FIRST_PAGE - number;
            let meta = meta(root, freelist, self.next_page, transaction);
            self.file.seek(SeekFrom::Start(number * PAGE_BYTES as u64))?;
            self.file.write_all(&header(number, META, 0, 0))?;
            self.file.write_all(&meta)?;
        }
        self.file.flush()?;
        Ok((self.file, self.next_page * PAGE_BYTES as u64))
    }

    /// Writes a page, or as many as the body needs; returns its number.
    fn page(&mut self, flags: u16, count: usize, body: &[u8]) -> io::Result<u64> {
        let too_many = |_| io::Error::new(io::ErrorKind::InvalidInput, "too much for a page");
        let number = self.next_page;
        let pages = (HEADER_BYTES + body.len()).div_ceil(PAGE_BYTES);
        let count = u16::try_from(count).map_err(too_many)?;
        let overflow = u32::try_from(pages - 1).map_err(too_many)?;
        self.file.write_all(&header(number, flags, count, overflow))?;
        self.file.write_all(body)?;
        self.file.write_all(&vec![0; pages * PAGE_BYTES - HEADER_BYTES - body.len()])?;
        self.next_page += pages as u64;
        Ok(number)
    }
}

fn header(number: u64, flags: u16, count: u16, overflow: u32) -> Vec<u8> {
    let mut header = number.to_le_bytes().to_vec();
    header.extend(flags.to_le_bytes());
    header.extend(count.to_le_bytes());
    header.extend(overflow.to_le_bytes());
    header
}

fn meta(root: u64, freelist: u64, pages: u64, transaction: u64) -> Vec<u8> {
    let mut meta = Vec::new();
    for number in [MAGIC, VERSION, PAGE_BYTES as u32, 0] {
        meta.extend(number.to_le_bytes());
    }
    for number in [root, 0, freelist, pages, transaction] {
        meta.extend(number.to_le_bytes());
    }
    let checksum = fnv1a(&meta);
    meta.extend(checksum.to_le_bytes());
    meta
}

/// A bucket that is being written.
#[derive(Debug)]
pub struct Bucket<'a, F> {
    writer: &'a mut Writer<F>,
    name: Vec<u8>,
    leaf: Pending,
    /// From the lowest level to the highest.
    branches: Vec<Pending>,
}

impl<F: Write + Seek> Bucket<'_, F> {
    /// Adds a key, which comes after all that were added, in the order of bytes.
    ///
    /// # Errors
    /// The file cannot be written, or the key is not in order.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if self.leaf.elements.last().is_some_and(|last| last.key.as_slice() >= key) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "keys are not in order"));
        }
        self.push(Element { key: key.to_vec(), value: value.to_vec(), number: 0 })
    }

    /// Completes the bucket.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        let root = self.write_tree()?;
        self.writer.buckets.push((self.name, root));
        Ok(())
    }

    fn push(&mut self, element: Element) -> io::Result<()> {
        if !self.leaf.has_room_for(&element) {
            let full = std::mem::take(&mut self.leaf);
            let child = self.write(LEAF, full)?;
            self.push_branch(0, child)?;
        }
        self.leaf.push(element);
        Ok(())
    }

    fn push_branch(&mut self, level: usize, child: Element) -> io::Result<()> {
        if self.branches.len() == level {
            self.branches.push(Pending::default());
        }
        let branch = &self.branches[level];
        // At least two, however long the keys are (the page then goes on): each level must be smaller than the one below it.
        if branch.elements.len() > 1 && !branch.has_room_for(&child) {
            let full = std::mem::take(&mut self.branches[level]);
            let parent = self.write(BRANCH, full)?;
            self.push_branch(level + 1, parent)?;
        }
        self.branches[level].push(child);
        Ok(())
    }

    /// Writes what is left, from the leaves up; the root page.
    fn write_tree(&mut self) -> io::Result<u64> {
        let last = std::mem::take(&mut self.leaf);
        let mut child = self.write(LEAF, last)?;
        let mut level = 0;
        while level < self.branches.len() {
            self.push_branch(level, child)?;
            let rest = std::mem::take(&mut self.branches[level]);
            child = self.write(BRANCH, rest)?;
            level += 1;
        }
        Ok(child.number)
    }

    /// Writes a page; what its parent says of it.
    fn write(&mut self, flags: u16, page: Pending) -> io::Result<Element> {
        let mut body = Vec::with_capacity(page.bytes);
        let mut at = page.elements.len() * ELEMENT_BYTES;
        for (number, element) in page.elements.iter().enumerate() {
            let distance = (at - number * ELEMENT_BYTES) as u32;
            let (key, value) = (element.key.len() as u32, element.value.len() as u32);
            if flags == LEAF {
                for number in [element.number as u32, distance, key, value] {
                    body.extend(number.to_le_bytes());
                }
            } else {
                body.extend(distance.to_le_bytes());
                body.extend(key.to_le_bytes());
                body.extend(element.number.to_le_bytes());
            }
            at += element.key.len() + element.value.len();
        }
        for element in &page.elements {
            body.extend_from_slice(&element.key);
            body.extend_from_slice(&element.value);
        }
        let number = self.writer.page(flags, page.elements.len(), &body)?;
        let key = page.elements.into_iter().next().map(|first| first.key).unwrap_or_default();
        Ok(Element { key, value: Vec::new(), number })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Reads a tree as bbolt does: every key and value below a page.
    fn walk(file: &[u8], page: u64, found: &mut Vec<(Vec<u8>, Vec<u8>)>) {
        let at = page as usize * PAGE_BYTES;
        let number = |at: usize, bytes: usize| {
            file[at..at + bytes].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        assert_eq!(number(at, 8), page);
        let (flags, count) = (number(at + 8, 2) as u16, number(at + 10, 2) as usize);
        for element in 0..count {
            let at = at + HEADER_BYTES + element * ELEMENT_BYTES;
            match flags {
                LEAF => {
                    let (distance, key, value) =
                        (number(at + 4, 4) as usize, number(at + 8, 4) as usize, number(at + 12, 4) as usize);
                    let key_at = at + distance;
                    let (key, value) =
                        (&file[key_at..key_at + key], &file[key_at + key..key_at + key + value]);
                    found.push((key.to_vec(), value.to_vec()));
                }
                BRANCH => {
                    let (distance, key) = (number(at, 4) as usize, number(at + 4, 4) as usize);
                    let before = found.len();
                    walk(file, number(at + 8, 8), found);
                    assert_eq!(found[before].0, &file[at + distance..at + distance + key]);
                }
                other => panic!("page {page} has flags {other:x}"),
            }
        }
    }

    fn entries(count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let value = |number: usize| {
            vec![number as u8; number * 37 % 300 + if number.is_multiple_of(97) { 9_000 } else { 0 }]
        };
        (0..count).map(|number| (format!("{number:08}").into_bytes(), value(number))).collect()
    }

    #[test]
    fn everything_is_found_from_the_root() {
        for count in [0, 1, 2, 100, 30_000] {
            let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
            let entries = entries(count);
            for name in ["key", "auth"] {
                let mut bucket = writer.bucket(name.as_bytes());
                for (key, value) in &entries {
                    bucket.put(key, value).unwrap();
                }
                bucket.finish().unwrap();
            }
            let (file, bytes) = writer.finish().unwrap();
            let file = file.into_inner();
            assert_eq!(file.len() as u64, bytes);
            let page = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
            for meta in 0..2 {
                let at = meta * PAGE_BYTES + HEADER_BYTES;
                assert_eq!(page(at + 56), fnv1a(&file[at..at + 56]));
                assert_eq!(page(at + 40) * PAGE_BYTES as u64, bytes);
            }
            let mut buckets = Vec::new();
            walk(&file, page(HEADER_BYTES + 16), &mut buckets);
            let names: Vec<&[u8]> = buckets.iter().map(|(name, _)| name.as_slice()).collect();
            assert_eq!(names, [&b"auth"[..], b"key"]);
            for (_, root) in buckets {
                let mut found = Vec::new();
                walk(&file, u64::from_le_bytes(root[..8].try_into().unwrap()), &mut found);
                assert!(found == entries);
            }
        }
    }

    /// A file that fails when it grows beyond what a test can mean.
    struct Bounded(Cursor<Vec<u8>>);

    impl Write for Bounded {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.position() > 16 << 20 {
                return Err(io::Error::other("the file grows without end"));
            }
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Bounded {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    /// Branches once took a single key that was longer than half a page, so that levels were built on levels without end: two users
    /// with long names, and a backup filled the disk.
    #[test]
    fn keys_longer_than_half_a_page_end_in_a_root() {
        for (count, length) in [(2, 2_030), (3, 2_030), (40, 3_000), (9, 5_000), (2, 32_768)] {
            let entries: Vec<(Vec<u8>, Vec<u8>)> = (0..count)
                .map(|number| (format!("{number:0length$}").into_bytes(), b"value".to_vec()))
                .collect();
            let mut writer = Writer::new(Bounded(Cursor::new(Vec::new()))).unwrap();
            let mut bucket = writer.bucket(b"authUsers");
            for (key, value) in &entries {
                bucket.put(key, value).unwrap();
            }
            bucket.finish().unwrap();
            let root = writer.buckets[0].1;
            let file = writer.finish().unwrap().0.0.into_inner();
            let mut found = Vec::new();
            walk(&file, root, &mut found);
            assert!(found == entries, "{count} keys of {length} bytes");
        }
    }

    #[test]
    fn keys_out_of_order_are_refused() {
        let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
        let mut bucket = writer.bucket(b"b");
        bucket.put(b"b", b"").unwrap();
        assert!(bucket.put(b"a", b"").is_err());
        assert!(bucket.put(b"b", b"").is_err());
    }
}
