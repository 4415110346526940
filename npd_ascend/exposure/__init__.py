"""How student and teacher differ where the student's own answers lead: exposure bias, measured."""
