mod fires;
mod fixture;
mod lifecycle;
mod loading;
mod netns;
