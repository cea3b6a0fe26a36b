//! Reading a file that may be damaged.
//!
//! Nothing in a file is trusted: whatever a page says is held against the size of the file and against what its elements need, a tree has
//! no more pages than the file and no more levels than [`DEPTH_MAX`], and keys must be in order. So reading ends, with what is there
//! or with [`Damage`].
//!
//! Left out of what bbolt's own check does: the list of free pages, pages that belong to nobody, and the keys of branches.

use std::io::{self, Read, Seek, SeekFrom};

use crate::format::{BRANCH, BUCKET, ELEMENT_BYTES, HEADER_BYTES, LEAF, MAGIC, META_BYTES, VERSION, fnv1a};

/// A tree of this height would hold more keys than there are.
const DEPTH_MAX: usize = 32;
/// bbolt takes the page size of the machine it runs on.
const PAGE_BYTES: std::ops::RangeInclusive<u32> = 512..=1 << 16;
/// Root page and sequence of a bucket.
const BUCKET_BYTES: usize = 16;

/// What is wrong with a file.
#[derive(Debug)]
pub enum Damage {
    /// It cannot be read.
    Io(io::Error),
    /// It is not what bbolt writes.
    At {
        /// Where in the file, in bytes.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Io(error) => write!(f, "{error}"),
            Damage::At { offset, what } => write!(f, "at byte {offset}: {what}"),
        }
    }
}

impl std::error::Error for Damage {}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Damage {
        Damage::Io(error)
    }
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

/// Gets the flags of an element, its key, its value.
type Visit<'a, E> = &'a mut dyn FnMut(u32, &[u8], &[u8]) -> Result<(), E>;

/// A file whose metas were read.
#[derive(Debug)]
pub struct Reader<F> {
    file: F,
    page_bytes: u64,
    /// As the meta says, and as there are in the file.
    pages: u64,
    root: u64,
    /// Pages read since a tree was begun.
    visited: u64,
}

/// A page with those that belong to it.
struct Page {
    offset: u64,
    flags: u16,
    count: usize,
    /// With the header.
    bytes: Vec<u8>,
}

impl<F: Read + Seek> Reader<F> {
    /// Reads the metas of a file of `length` bytes; what follows is not looked at (etcd puts a hash there).
    ///
    /// # Errors
    /// No meta is valid, or the file is shorter than it says.
    pub fn new(mut file: F, length: u64) -> Result<Reader<F>, Damage> {
        let mut newest: Option<(u64, Reader<()>)> = None;
        // The second meta is behind the first page, whose size the first one tells; if that is damaged every size is tried.
        let mut offsets = vec![0];
        offsets.extend((9..=16).map(|bits| 1u64 << bits));
        for offset in offsets {
            let mut bytes = vec![0; HEADER_BYTES + META_BYTES];
            if offset + bytes.len() as u64 > length {
                break;
            }
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)?;
            let Some((transaction, meta)) = meta(&bytes[HEADER_BYTES..]) else { continue };
            let is_its_place = offset == 0 || offset == meta.page_bytes;
            if is_its_place && newest.as_ref().is_none_or(|(other, _)| *other < transaction) {
                newest = Some((transaction, meta));
            }
        }
        let damage = |what| Damage::At { offset: 0, what };
        let (_, meta) = newest.ok_or_else(|| damage("no valid meta page: this is not a file of bbolt"))?;
        if meta.pages.checked_mul(meta.page_bytes).is_none_or(|bytes| bytes > length) {
            return Err(damage("the file is shorter than it says: it was cut off"));
        }
        let Reader { page_bytes, pages, root, .. } = meta;
        Ok(Reader { file, page_bytes, pages, root, visited: 0 })
    }

    /// Bytes that the file has by its meta.
    pub fn bytes(&self) -> u64 {
        self.pages * self.page_bytes
    }

    /// The names of all buckets, in order.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn buckets(&mut self) -> Result<Vec<Vec<u8>>, Damage> {
        Ok(self.roots()?.into_iter().map(|(name, _)| name).collect())
    }

    /// Shows the keys of a bucket with their values, in order, until `visit` fails; false if there is no such bucket. Buckets
    /// within it are passed over.
    ///
    /// # Errors
    /// What is wrong with the file, or what `visit` says.
    pub fn visit<E: From<Damage>>(
        &mut self,
        bucket: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let found = self.roots()?.into_iter().find(|(name, _)| name == bucket);
        let Some((_, value)) = found else { return Ok(false) };
        let mut plain = |flags: u32, key: &[u8], value: &[u8]| match flags {
            0 => visit(key, value),
            _ => Ok(()),
        };
        let Some((head, inline)) = value.split_at_checked(BUCKET_BYTES) else {
            return Err(Damage::At { offset: 0, what: "a bucket is too short" }.into());
        };
        match number(head, 0, 8) {
            // A small bucket is a page within its value.
            0 => {
                let page = Page::new(0, inline.to_vec())?;
                if page.flags != LEAF {
                    return Err(page.damage("a bucket within a page is no leaf").into());
                }
                page.visit_leaf(&mut None, &mut plain)?;
            }
            root => self.visit_tree(root, &mut plain)?,
        }
        Ok(true)
    }

    /// The buckets with their values.
    fn roots(&mut self) -> Result<Vec<Pair>, Damage> {
        let mut roots = Vec::new();
        self.visit_tree(self.root, &mut |flags, name: &[u8], value: &[u8]| {
            if flags == BUCKET {
                roots.push((name.to_vec(), value.to_vec()));
            }
            Ok::<(), Damage>(())
        })?;
        Ok(roots)
    }

    fn visit_tree<E: From<Damage>>(&mut self, root: u64, visit: Visit<'_, E>) -> Result<(), E> {
        self.visited = 0;
        self.visit_below(root, 0, &mut None, visit)
    }

    fn visit_below<E: From<Damage>>(
        &mut self,
        number: u64,
        depth: usize,
        last: &mut Option<Vec<u8>>,
        visit: Visit<'_, E>,
    ) -> Result<(), E> {
        let page = self.page(number)?;
        if depth > DEPTH_MAX || self.visited > self.pages {
            return Err(page.damage("a page is below itself").into());
        }
        match page.flags {
            LEAF => page.visit_leaf(last, visit),
            BRANCH => (0..page.count)
                .try_for_each(|element| self.visit_below(page.child(element)?, depth + 1, last, visit)),
            _ => Err(page.damage("neither a leaf nor a branch").into()),
        }
    }

    fn page(&mut self, number: u64) -> Result<Page, Damage> {
        let page_bytes = self.page_bytes;
        let damage = |what| Damage::At { offset: number.saturating_mul(page_bytes), what };
        if number < 2 || number >= self.pages {
            return Err(damage("a page that does not exist"));
        }
        let offset = number * self.page_bytes;
        let mut bytes = vec![0; self.page_bytes as usize];
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.read_exact(&mut bytes)?;
        if self::number(&bytes, 0, 8) != number {
            return Err(damage("a page with another page's number"));
        }
        let pages = self::number(&bytes, 12, 4) + 1;
        if pages > self.pages - number {
            return Err(damage("a page that ends behind the file"));
        }
        self.visited += pages;
        let whole = pages * self.page_bytes;
        // First the elements, then what they say is there: bbolt takes a page more than that at most, and so one wrong number
        // does not fill the memory.
        let elements = HEADER_BYTES as u64 + self::number(&bytes, 10, 2) * ELEMENT_BYTES as u64;
        self.read_on(&mut bytes, elements.min(whole))?;
        let needed = Page::new(offset, bytes.clone())?.end()?;
        if needed > whole || needed.next_multiple_of(self.page_bytes) + self.page_bytes < whole {
            return Err(damage("a page whose size is not that of its elements"));
        }
        self.read_on(&mut bytes, needed)?;
        Page::new(offset, bytes)
    }

    /// Reads what follows `bytes`, until there are as many as asked for.
    fn read_on(&mut self, bytes: &mut Vec<u8>, length: u64) -> io::Result<()> {
        let have = bytes.len();
        if length > have as u64 {
            bytes.resize(length as usize, 0);
            self.file.read_exact(&mut bytes[have..])?;
        }
        Ok(())
    }
}

impl Page {
    fn new(offset: u64, bytes: Vec<u8>) -> Result<Page, Damage> {
        if bytes.len() < HEADER_BYTES {
            return Err(Damage::At { offset, what: "a page without its header" });
        }
        let (flags, count) = (number(&bytes, 8, 2) as u16, number(&bytes, 10, 2) as usize);
        let page = Page { offset, flags, count, bytes };
        match HEADER_BYTES + count * ELEMENT_BYTES > page.bytes.len() {
            true => Err(page.damage("more elements than fit")),
            false => Ok(page),
        }
    }

    fn damage(&self, what: &'static str) -> Damage {
        Damage::At { offset: self.offset, what }
    }

    fn slice(&self, at: usize, length: usize) -> Result<&[u8], Damage> {
        let end = at.checked_add(length);
        end.and_then(|end| self.bytes.get(at..end)).ok_or_else(|| self.damage("an element outside its page"))
    }

    /// The numbers of an element.
    fn element(&self, element: usize) -> Result<(usize, &[u8]), Damage> {
        let at = HEADER_BYTES + element * ELEMENT_BYTES;
        Ok((at, self.slice(at, ELEMENT_BYTES)?))
    }

    /// Bytes up to the end of the last element, which is the last in the page.
    fn end(&self) -> Result<u64, Damage> {
        let Some(last) = self.count.checked_sub(1) else { return Ok(HEADER_BYTES as u64) };
        let (at, head) = self.element(last)?;
        let sizes = match self.flags {
            BRANCH => number(head, 0, 4) + number(head, 4, 4),
            _ => number(head, 4, 4) + number(head, 8, 4) + number(head, 12, 4),
        };
        Ok(at as u64 + sizes.max(ELEMENT_BYTES as u64))
    }

    /// The page that an element of a branch names.
    fn child(&self, element: usize) -> Result<u64, Damage> {
        Ok(number(self.element(element)?.1, 8, 8))
    }

    fn visit_leaf<E: From<Damage>>(&self, last: &mut Option<Vec<u8>>, visit: Visit<'_, E>) -> Result<(), E> {
        for element in 0..self.count {
            let (at, head) = self.element(element)?;
            let [flags, distance, key, value] = [0, 4, 8, 12].map(|at| number(head, at, 4) as usize);
            let key_at = at + distance;
            let (key, value) = (self.slice(key_at, key)?, self.slice(key_at + key, value)?);
            if last.as_ref().is_some_and(|last| last.as_slice() >= key) {
                return Err(self.damage("keys are not in order").into());
            }
            *last = Some(key.to_vec());
            visit(flags as u32, key, value)?;
        }
        Ok(())
    }
}

/// A little-endian number of at most eight bytes, which are there.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What a meta says, with its transaction, if it is valid.
fn meta(bytes: &[u8]) -> Option<(u64, Reader<()>)> {
    let (magic, version) = (number(bytes, 0, 4), number(bytes, 4, 4));
    let page_bytes = number(bytes, 8, 4) as u32;
    let is_valid = magic == u64::from(MAGIC)
        && version == u64::from(VERSION)
        && PAGE_BYTES.contains(&page_bytes)
        && page_bytes.is_power_of_two()
        && number(bytes, META_BYTES - 8, 8) == fnv1a(&bytes[..META_BYTES - 8]);
    let (root, pages, transaction) = (number(bytes, 16, 8), number(bytes, 40, 8), number(bytes, 48, 8));
    let reader = Reader { file: (), page_bytes: u64::from(page_bytes), pages, root, visited: 0 };
    is_valid.then_some((transaction, reader))
}
