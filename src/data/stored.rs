//! Rows as numbers, the form in which files hold them.

use super::LabelledCompletion;
use super::PreferencePair;
use super::SftDocument;
use super::SftRow;

/// A row whose token ids can be written as numbers and read back.
pub(super) trait Stored: Sized {
    fn write(&self, out: &mut Vec<u32>);
    /// Reads a row; `None` if the numbers end too early or are invalid.
    fn read(numbers: &mut Numbers) -> Option<Self>;

    /// Reads a row from all its numbers.
    fn decode(numbers: &[u32]) -> Option<Self> {
        let mut rest = Numbers(numbers);
        let row = Self::read(&mut rest)?;
        rest.0.is_empty().then_some(row)
    }
}

/// The numbers that have not been read yet.
pub(super) struct Numbers<'a>(&'a [u32]);

impl Numbers<'_> {
    fn one(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken.to_vec())
    }

    /// Reads a count, then that many numbers.
    fn list(&mut self) -> Option<Vec<u32>> {
        let count = self.one()?;
        self.take(count as usize)
    }
}

fn write_list(list: &[u32], out: &mut Vec<u32>) {
    out.push(list.len() as u32);
    out.extend_from_slice(list);
}

/// The gold response is written if it is not empty, as the last list of the row.
impl Stored for PreferencePair {
    fn write(&self, out: &mut Vec<u32>) {
        for ids in [&self.prompt, &self.chosen, &self.rejected] {
            write_list(ids, out);
        }
        if !self.gold.is_empty() {
            write_list(&self.gold, out);
        }
    }

    fn read(numbers: &mut Numbers) -> Option<Self> {
        let [prompt, chosen, rejected] = [numbers.list()?, numbers.list()?, numbers.list()?];
        let gold = if numbers.0.is_empty() { Vec::new() } else { numbers.list()? };
        Some(Self { prompt, chosen, rejected, gold })
    }
}

impl Stored for LabelledCompletion {
    fn write(&self, out: &mut Vec<u32>) {
        out.push(u32::from(self.label));
        write_list(&self.prompt, out);
        write_list(&self.completion, out);
    }

    fn read(numbers: &mut Numbers) -> Option<Self> {
        let label = numbers.one()? == 1;
        Some(Self { prompt: numbers.list()?, completion: numbers.list()?, label })
    }
}

/// The labelled completions that are made of one row of a data set.
impl Stored for Vec<LabelledCompletion> {
    fn write(&self, out: &mut Vec<u32>) {
        out.push(self.len() as u32);
        self.iter().for_each(|row| row.write(out));
    }

    fn read(numbers: &mut Numbers) -> Option<Self> {
        let count = numbers.one()?;
        (0..count).map(|_| LabelledCompletion::read(numbers)).collect()
    }
}

impl Stored for SftDocument {
    fn write(&self, out: &mut Vec<u32>) {
        write_list(&self.ids, out);
        // Labels come in runs, so store only the places at which they change.
        let mut last = false;
        let changes: Vec<u32> = (0u32..)
            .zip(&self.labels)
            .filter(|(_, label)| std::mem::replace(&mut last, **label) != **label)
            .map(|(place, _)| place)
            .collect();
        write_list(&changes, out);
    }

    fn read(numbers: &mut Numbers) -> Option<Self> {
        let ids = numbers.list()?;
        let changes = numbers.list()?;
        let mut labels = vec![false; ids.len()];
        for run in changes.chunks(2) {
            let end = run.get(1).map_or(ids.len(), |end| *end as usize);
            labels.get_mut(run[0] as usize..end)?.fill(true);
        }
        Some(SftDocument { ids, labels })
    }
}

impl Stored for SftRow {
    fn write(&self, out: &mut Vec<u32>) {
        out.push(self.documents.len() as u32);
        self.documents.iter().for_each(|document| document.write(out));
    }

    fn read(numbers: &mut Numbers) -> Option<Self> {
        let documents = numbers.one()?;
        let documents = (0..documents).map(|_| SftDocument::read(numbers));
        Some(Self { documents: documents.collect::<Option<_>>()? })
    }
}
