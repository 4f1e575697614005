mod drift;
mod fires;
mod fixture;
mod kept;
mod lifecycle;
mod loading;
mod netns;
mod updates;
