"""The console command ``fastreid-star``. ``--help`` does not import torch, which takes seconds."""
def main():
    print("stub")
