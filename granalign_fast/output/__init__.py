"""What people get: tables, pictures, subtitles, chapters and cut lists."""
