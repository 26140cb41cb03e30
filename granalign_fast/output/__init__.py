"""Write results: tables, pictures, subtitles, chapters and cut lists."""
