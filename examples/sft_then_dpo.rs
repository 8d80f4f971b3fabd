//! SFT, then DPO, on a toy world, with settings and an observer of one's own.
use std::{error::Error, io, path::Path, sync::atomic::AtomicBool};

use favonius::parallel::Ranks;
use favonius::recipe::{DatasetSpec, Recipe, Stage};
use favonius::run::{Context, run_recipe};
use favonius::toy::world;
use favonius::train::event::{Event, Observer};

struct Losses;

impl Observer for Losses {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        let Event::Log(row) = event else { return Ok(()) };
        row.get("loss").inspect(|loss| println!("step {:>3}  loss {loss:.4}", row.step));
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let world = world::write(Path::new("favonius-example"), 42)?;
    let (sft, dpo) = (world.root.join("sft"), world.root.join("dpo"));
    let context = Context { ranks: &Ranks::one(), stop: &AtomicBool::new(false) };

    let chats = DatasetSpec::new(world.chats.to_string_lossy(), "train_sft");
    let mut recipe = Recipe::new(Stage::Sft, world.base_model.to_string_lossy(), chats, &sft);
    recipe.train.learning_rate = 3e-3;
    recipe.train.max_steps = Some(100);
    run_recipe(recipe, &context, &mut Losses)?;

    let pairs = DatasetSpec::new(world.preferences.to_string_lossy(), "train_prefs");
    let mut recipe = Recipe::new(Stage::Dpo, sft.to_string_lossy(), pairs, &dpo);
    recipe.train.learning_rate = 1e-4;
    recipe.train.max_steps = Some(50);
    run_recipe(recipe, &context, &mut Losses)?;
    Ok(())
}
