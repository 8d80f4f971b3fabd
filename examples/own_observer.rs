//! An observer of one's own: the training record as CSV, one file for each kind of row.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use favonius::parallel::Ranks;
use favonius::recipe::{DatasetSpec, Recipe, Stage};
use favonius::run::{Context, run_recipe};
use favonius::toy::world;
use favonius::train::event::{Event, LogRow, Observer};

/// Writes `step,epoch,value,…` of every row that has a training loss. The columns are those of the
/// first such row.
struct Csv {
    file: File,
    columns: Vec<String>,
}

impl Csv {
    fn row(&mut self, row: &LogRow) -> io::Result<()> {
        if self.columns.is_empty() {
            self.columns = row.values.iter().map(|(name, _)| name.clone()).collect();
            writeln!(self.file, "step,epoch,{}", self.columns.join(","))?;
        }
        let values = self.columns.iter().map(|name| row.get(name).unwrap_or(f64::NAN).to_string());
        let values = values.collect::<Vec<_>>().join(",");
        writeln!(self.file, "{},{},{values}", row.step, row.epoch)
    }
}

impl Observer for Csv {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Log(row) if row.get("loss").is_some() => self.row(row),
            _ => Ok(()),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let world = world::write(Path::new("favonius-own-observer"), 42)?;
    let chats = DatasetSpec::new(world.chats.to_string_lossy(), "train_sft");
    let (model, out) = (world.base_model.to_string_lossy(), world.root.join("sft"));
    let mut recipe = Recipe::new(Stage::Sft, model, chats, out);
    recipe.train.max_steps = Some(20);
    recipe.train.logging = favonius::recipe::Every::Steps(1.0);
    let path = world.root.join("losses.csv");
    let mut csv = Csv { file: File::create(&path)?, columns: Vec::new() };
    let context = Context { ranks: &Ranks::one(), stop: &AtomicBool::new(false) };
    run_recipe(recipe, &context, &mut csv)?;
    println!("wrote {}", path.display());
    Ok(())
}
