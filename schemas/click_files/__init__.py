"""Files of clicks, read alike by `stream-app replay` and by the trainer.

| module     | idea |
|---|---|
| options    | what a user says about a file, as options of both command lines |
| container  | what a file is by its content: plain, gzip, zip, UTF-16, Parquet |
| forms      | which columns hold session, item and time: our own files and the public logs |
| delimited  | text with a delimiter, in columns |
| json_lines | one JSON object a line, in columns |
| parquet    | Parquet, in columns; the only module that needs pyarrow |
| ids        | ids as numbers |
| types      | types of clicks as numbers |
| clock      | times as milliseconds |
| read       | all of it: paths in, a `ClickLog` out |

Nothing is imported here: the command lines need the options alone, and must answer at once.
"""
