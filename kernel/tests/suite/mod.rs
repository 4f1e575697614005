mod fires;
mod fixture;
mod lifecycle;
mod loading;
